// Compiled once for each instruction set, with PATCHPOSE_ISA as its name. Everything is local to the
// file and nothing of the standard library is called: a function that two sets share might be linked
// from the wrong one. Plain loops, which compilers vectorise.
#include "lattice.hpp"

#include <cstring>

namespace patchpose {
namespace {

// Samples that pass through the three loops at a time; their buffers stay in the nearest cache.
constexpr int kBlock = 256;

// How the left and the right pixel of a sample are kept in 32-bit words, whatever their type, so
// that the arithmetic loop reads equal lanes. `value` returns one of the 2 * kChannels values.
template <class T, int kChannels>
struct Pair;

template <>
struct Pair<std::uint8_t, 1> {
  static constexpr int kWords = 1;
  static void load(const std::uint8_t* pixel, std::uint32_t (*words)[kBlock], int j) {
    std::uint16_t both;
    std::memcpy(&both, pixel, sizeof both);
    words[0][j] = both;
  }
  static float value(const std::uint32_t (*words)[kBlock], int j, int i) {
    return float(std::int32_t(words[0][j] >> (8 * i) & 0xff));
  }
};

template <>
struct Pair<std::uint8_t, 3> {
  static constexpr int kWords = 2;
  static void load(const std::uint8_t* pixel, std::uint32_t (*words)[kBlock], int j) {
    // Two overlapping words of the six bytes: a byte more might lie outside the image.
    std::memcpy(&words[0][j], pixel, 4);
    std::memcpy(&words[1][j], pixel + 2, 4);
  }
  static float value(const std::uint32_t (*words)[kBlock], int j, int i) {
    const std::uint32_t word = i < 3 ? words[0][j] >> (8 * i) : words[1][j] >> (8 * i - 16);
    return float(std::int32_t(word & 0xff));
  }
};

template <int kChannels>
struct Pair<std::uint16_t, kChannels> {
  static constexpr int kWords = kChannels;
  static void load(const std::uint16_t* pixel, std::uint32_t (*words)[kBlock], int j) {
    for (int k = 0; k < kWords; ++k) std::memcpy(&words[k][j], pixel + 2 * k, 4);
  }
  static float value(const std::uint32_t (*words)[kBlock], int j, int i) {
    return float(std::int32_t(words[i / 2][j] >> (16 * (i % 2)) & 0xffff));
  }
};

template <int kChannels>
struct Pair<float, kChannels> {
  static constexpr int kWords = 2 * kChannels;
  static void load(const float* pixel, std::uint32_t (*words)[kBlock], int j) {
    for (int k = 0; k < kWords; ++k) std::memcpy(&words[k][j], pixel + k, 4);
  }
  static float value(const std::uint32_t (*words)[kBlock], int j, int i) {
    float value;
    std::memcpy(&value, &words[i][j], sizeof value);
    return value;
  }
};

template <class T>
constexpr float kScale = 1.0f;
template <>
constexpr float kScale<std::uint8_t> = 1.0f / 255.0f;
template <>
constexpr float kScale<std::uint16_t> = 1.0f / 65535.0f;

// Restricts to [0, last]; not-a-number, from overflow far outside an image, becomes 0.
inline float clamp_to(float value, float last) {
  const float positive = value > 0.0f ? value : 0.0f;
  return positive < last ? positive : last;
}

template <class T, int kChannels>
void sample_lattice(const Lattice& lattice, float* out) {
  using Pixels = Pair<T, kChannels>;
  const Lattice at = lattice;
  const T* const origin = static_cast<const T*>(at.origin);
  const std::int64_t stride = at.row_stride / std::int64_t(sizeof(T));
  const std::int32_t row = std::int32_t(stride);
  alignas(64) std::int32_t offset[kBlock];  // values from the origin to a sample's upper left pixel
  alignas(64) float weight_x[kBlock], weight_y[kBlock];  // shares of the right and lower pixels
  alignas(64) std::uint32_t upper[Pixels::kWords][kBlock], lower[Pixels::kWords][kBlock];

  for (int first = 0; first < at.count; first += kBlock) {
    const int count = at.count - first < kBlock ? at.count - first : kBlock;
    const float* const u = at.u + first;
    const float* const v = at.v + first;
    for (int j = 0; j < count; ++j) {
      const float x = clamp_to(at.x + (at.xu * u[j] + at.xv * v[j]), at.last_x);
      const float y = clamp_to(at.y + (at.yu * u[j] + at.yv * v[j]), at.last_y);
      const std::int32_t column = std::int32_t(x);
      const std::int32_t line = std::int32_t(y);
      weight_x[j] = x - float(column);
      weight_y[j] = y - float(line);
      offset[j] = line * row + column * kChannels;
    }
    for (int j = 0; j < count; ++j) {
      const T* const pixel = origin + offset[j];
      Pixels::load(pixel, upper, j);
      Pixels::load(pixel + stride, lower, j);
    }
    for (int c = 0; c < kChannels; ++c) {
      float* const plane = out + std::int64_t(c) * at.count + first;
      for (int j = 0; j < count; ++j) {
        const float top_left = Pixels::value(upper, j, c);
        const float low_left = Pixels::value(lower, j, c);
        const float top =
            top_left + weight_x[j] * (Pixels::value(upper, j, c + kChannels) - top_left);
        const float low =
            low_left + weight_x[j] * (Pixels::value(lower, j, c + kChannels) - low_left);
        plane[j] = (top + weight_y[j] * (low - top)) * kScale<T>;
      }
    }
  }
}

Moments measure(const float* patch, int rows, int columns, int halo) {
  constexpr int kLanes = 8;  // independent sums, so that the additions overlap
  double sums[kLanes] = {}, squares[kLanes] = {};
  for (int k = 0; k < rows; ++k) {
    const float* const line = patch + std::int64_t(k) * (columns + 2 * halo) + halo;
    int j = 0;
    for (; j + kLanes <= columns; j += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const double value = line[j + lane];
        sums[lane] += value;
        squares[lane] += value * value;
      }
    }
    for (; j < columns; ++j) {
      sums[0] += line[j];
      squares[0] += double(line[j]) * line[j];
    }
  }
  Moments total = {0.0, 0.0};
  for (int lane = 0; lane < kLanes; ++lane) {
    total.sum += sums[lane];
    total.square += squares[lane];
  }
  return total;
}

void normalize(float* values, int count, float offset, float gain) {
  for (int i = 0; i < count; ++i) values[i] = (values[i] - offset) * gain;
}

}  // namespace

#define PATCHPOSE_TEXT_OF(name) #name
#define PATCHPOSE_TEXT(name) PATCHPOSE_TEXT_OF(name)

namespace kernels {

extern const Kernels PATCHPOSE_ISA;
const Kernels PATCHPOSE_ISA = {
    PATCHPOSE_TEXT(PATCHPOSE_ISA),
    {{sample_lattice<std::uint8_t, 1>, sample_lattice<std::uint8_t, 3>},
     {sample_lattice<std::uint16_t, 1>, sample_lattice<std::uint16_t, 3>},
     {sample_lattice<float, 1>, sample_lattice<float, 3>}},
    measure,
    normalize,
};

}  // namespace kernels
}  // namespace patchpose
