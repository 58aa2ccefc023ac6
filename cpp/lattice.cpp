// Compiled once for each instruction set, with PATCHPOSE_ISA as its name. Everything is local to
// the file and nothing of the standard library is called: a function that two sets share might be
// linked from the wrong one. Plain loops, which compilers vectorise.
#include "lattice.hpp"

#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace patchpose {
namespace {

// Samples that pass through the three loops at a time, of several rings where they are short; their
// buffers stay in the nearest cache.
constexpr int kBlock = 256;

// The left and the right pixel of a sample are kept in 32-bit words, whatever their type, so that
// the loops see equal lanes. Word k begins at byte first_byte(k); `value` returns one of the
// 2 * kChannels values.
template <class T, int kChannels>
struct Pair;

using Words = std::uint32_t[kBlock];

template <int kChannels>
struct Pair<std::uint8_t, kChannels> {
  // Three channels: two overlapping words of the six bytes, since further bytes may lie outside.
  static constexpr int kWords = kChannels == 1 ? 1 : 2;
  static constexpr int first_byte(int k) { return 2 * k; }
  static float value(const Words* words, int j, int i) {
    const std::uint32_t word = i < 3 ? words[0][j] >> (8 * i) : words[1][j] >> (8 * i - 16);
    return float(std::int32_t(word & 0xff));
  }
};

template <int kChannels>
struct Pair<std::uint16_t, kChannels> {
  static constexpr int kWords = kChannels;
  static constexpr int first_byte(int k) { return 4 * k; }
  static float value(const Words* words, int j, int i) {
    return float(std::int32_t(words[i / 2][j] >> (16 * (i % 2)) & 0xffff));
  }
};

template <int kChannels>
struct Pair<float, kChannels> {
  static constexpr int kWords = 2 * kChannels;
  static constexpr int first_byte(int k) { return 4 * k; }
  static float value(const Words* words, int j, int i) {
    float value;
    std::memcpy(&value, &words[i][j], sizeof value);
    return value;
  }
};

// Reads the word at each of `count` byte offsets, a multiple of kLanes.
inline void gather(const char* origin, const std::int32_t* offset, int count,
                   std::uint32_t* words) {
#if defined(__AVX512F__)
  for (int j = 0; j < count; j += 16) {
    const __m512i bytes = _mm512_load_si512(offset + j);
    const __m512i zero = _mm512_setzero_si512();
    _mm512_store_si512(words + j, _mm512_mask_i32gather_epi32(zero, 0xffff, bytes, origin, 1));
  }
#elif defined(__AVX2__)
  for (int j = 0; j < count; j += 8) {
    const __m256i bytes = _mm256_load_si256(reinterpret_cast<const __m256i*>(offset + j));
    const __m256i found = _mm256_i32gather_epi32(reinterpret_cast<const int*>(origin), bytes, 1);
    _mm256_store_si256(reinterpret_cast<__m256i*>(words + j), found);
  }
#else
  for (int j = 0; j < count; ++j) std::memcpy(words + j, origin + offset[j], 4);
#endif
}

// The same where an image ends after the two bytes that are wanted.
inline void gather_two_bytes(const char* origin, const std::int32_t* offset, int count,
                             std::uint32_t* words) {
  for (int j = 0; j < count; ++j) {
    std::uint16_t both;
    std::memcpy(&both, origin + offset[j], sizeof both);
    words[j] = both;
  }
}

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

constexpr int padded_count(int count) { return (count + kLanes - 1) / kLanes * kLanes; }

template <class T, int kChannels>
void sample_lattice(const Lattice& lattice, float* out) {
  using Pixels = Pair<T, kChannels>;
  constexpr int kPixelBytes = kChannels * int(sizeof(T));
  const Lattice at = lattice;
  const char* const origin = static_cast<const char*>(at.origin);
  const std::int32_t row = std::int32_t(at.row_stride);
  alignas(64) std::int32_t offset[kBlock];  // bytes from the origin to a sample's upper left pixel
  alignas(64) float weight_x[kBlock], weight_y[kBlock];  // shares of the right and lower pixels
  alignas(64) Words upper[Pixels::kWords], lower[Pixels::kWords];
  alignas(64) float values[kBlock];  // results, where whole vectors would not fit the output

  const std::int64_t plane = std::int64_t(at.rings) * at.count;
  const bool whole = at.count % kLanes == 0;  // rings leave no gaps in the buffers

  int ring = 0, first = 0;  // the next sample
  while (ring < at.rings) {
    float* const block = out + std::int64_t(ring) * at.count + first;
    int filled = 0, pieces = 0;
    int piece[kBlock / kLanes];  // samples of one ring
    do {
      const int left = at.count - first;
      const int count = left < kBlock - filled ? left : kBlock - filled;
      const int padded = padded_count(count);
      const float* const u = at.u + first;
      const float* const v = at.v + first;
      const float right = at.spacing[ring] * at.right, down = at.spacing[ring] * at.down;
      for (int j = 0; j < padded; ++j) {
        const float x = clamp_to(at.x + (right * u[j] - down * v[j]), at.last_x);
        const float y = clamp_to(at.y + (down * u[j] + right * v[j]), at.last_y);
        const std::int32_t column = std::int32_t(x);
        const std::int32_t line = std::int32_t(y);
        weight_x[filled + j] = x - float(column);
        weight_y[filled + j] = y - float(line);
        offset[filled + j] = line * row + column * kPixelBytes;
      }
      piece[pieces++] = count;
      filled += padded;
      first += count;
      if (first == at.count) {
        first = 0;
        ++ring;
      }
    } while (filled < kBlock && ring < at.rings);
    if (2 * kPixelBytes < 4 && at.at_end) {
      gather_two_bytes(origin, offset, filled, upper[0]);
      gather_two_bytes(origin + at.row_stride, offset, filled, lower[0]);
    } else {
      for (int k = 0; k < Pixels::kWords; ++k) {
        const char* const word = origin + Pixels::first_byte(k);
        gather(word, offset, filled, upper[k]);
        gather(word + at.row_stride, offset, filled, lower[k]);
      }
    }
    for (int c = 0; c < kChannels; ++c) {
      float* found = block + c * plane;
      float* const target = whole ? found : values;
      for (int j = 0; j < filled; ++j) {
        const float top_left = Pixels::value(upper, j, c);
        const float low_left = Pixels::value(lower, j, c);
        const float top =
            top_left + weight_x[j] * (Pixels::value(upper, j, c + kChannels) - top_left);
        const float low =
            low_left + weight_x[j] * (Pixels::value(lower, j, c + kChannels) - low_left);
        target[j] = (top + weight_y[j] * (low - top)) * kScale<T>;
      }
      if (whole) continue;
      const float* from = values;
      for (int i = 0; i < pieces; ++i) {
        std::memcpy(found, from, piece[i] * sizeof(float));
        found += piece[i];
        from += padded_count(piece[i]);
      }
    }
  }
}

Moments measure(const float* patch, int rows, int columns, int halo, float pivot) {
  Moments total = {0.0, 0.0};
  for (int first = 0; first < columns; first += kBlock) {
    const int count = columns - first < kBlock ? columns - first : kBlock;
    // A sum for each column: any number of lanes adds up in the same order.
    alignas(64) float sums[kBlock] = {}, squares[kBlock] = {};
    for (int k = 0; k < rows; ++k) {
      const float* const line = patch + std::int64_t(k) * (columns + 2 * halo) + halo + first;
      for (int j = 0; j < count; ++j) {
        const float value = line[j] - pivot;
        sums[j] += value;
        squares[j] += value * value;
      }
    }
    for (int j = 0; j < count; ++j) {
      total.sum += sums[j];
      total.square += squares[j];
    }
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
