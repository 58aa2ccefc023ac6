// Compiled once for each instruction set, with PATCHPOSE_ISA as its name. Everything is local to
// the file and nothing of the standard library is called: a function that two sets share might be
// linked from the wrong one. Plain loops, which compilers vectorise, but for some of AVX-512.
#include "lattice.hpp"

#include <cstring>

#if defined(__AVX2__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own header
#endif
#include <immintrin.h>
#endif

namespace patchpose {
namespace {

// Samples that pass through the three loops at a time; their buffers stay in the nearest cache.
constexpr int kBlock = 256;

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "Pixels are told apart in words whose lowest byte comes first; build without the kernel"
#endif

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

#if defined(__AVX512F__)
inline __m512 clamp_to(__m512 value, __m512 last) {
  // The second operand of not-a-number is what _mm512_max_ps returns.
  return _mm512_min_ps(_mm512_max_ps(value, _mm512_setzero_ps()), last);
}
#endif

constexpr int padded_count(int count) { return (count + kLanes - 1) / kLanes * kLanes; }

#if defined(__AVX512F__)
// The four pixels of each lane's sample, of an image of bytes.
struct Corners {
  __m512 top_left, top_right, low_left, low_right;
};

class Gatherer {
 public:
  explicit Gatherer(const Lattice& at)
      : origin_(static_cast<const char*>(at.origin)),
        stride_(at.row_stride),
        row_(_mm512_set1_epi32(std::int32_t(at.row_stride))) {}
  Corners operator()(__m512i column, __m512i line) const {
    const __m512i offset = _mm512_add_epi32(_mm512_mullo_epi32(line, row_), column);
    const __m512i top = _mm512_i32gather_epi32(offset, origin_, 1);
    const __m512i low = _mm512_i32gather_epi32(offset, origin_ + stride_, 1);
    return {byte(top, 0), byte(top, 1), byte(low, 0), byte(low, 1)};
  }

 private:
  // Byte k of each lane; where the highest bit of a place is set, a shuffle puts 0.
  static __m512 byte(__m512i words, int k) {
    const __m512i lowest = _mm512_set4_epi32(0x8080800c, 0x80808008, 0x80808004, 0x80808000);
    const __m512i place = _mm512_add_epi32(lowest, _mm512_set1_epi32(k));
    return _mm512_cvtepi32_ps(_mm512_shuffle_epi8(words, place));
  }
  const char* origin_;
  std::int64_t stride_;
  __m512i row_;
};

#if defined(__AVX512VBMI__)
// For narrow lattices, whose pixels fit into one vector: a permutation finds those of all lanes at
// once, where a gather reads one by one.
class Table {
 public:
  explicit Table(const Lattice& at) {
    alignas(64) char bytes[kNarrow * kNarrow];
    for (int k = 0; k < kNarrow; ++k) {
      const char* const line = static_cast<const char*>(at.origin) + k * at.row_stride;
      std::memcpy(bytes + k * kNarrow, line, kNarrow);
    }
    bytes_ = _mm512_load_si512(bytes);
  }
  Corners operator()(__m512i column, __m512i line) const {
    const __m512i index = _mm512_add_epi32(_mm512_slli_epi32(line, 3), column);
    return {byte(index, 0), byte(index, 1), byte(index, kNarrow), byte(index, kNarrow + 1)};
  }

 private:
  __m512 byte(__m512i index, int step) const {
    constexpr __mmask64 kLowest = 0x1111111111111111;  // of each lane's bytes
    const __m512i at = _mm512_add_epi32(index, _mm512_set1_epi32(step));
    return _mm512_cvtepi32_ps(_mm512_maskz_permutexvar_epi8(kLowest, at, bytes_));
  }
  __m512i bytes_;
};
#endif

// The lanes of a vector, whose first one is at `first`, that lie in [begin, end).
inline __mmask16 lanes_in(int first, int begin, int end) {
  const auto below = [first](int limit) {
    const int lanes = limit - first;
    return lanes <= 0 ? 0u : lanes >= kLanes ? 0xffffu : (1u << lanes) - 1u;
  };
  return __mmask16(below(end) & ~below(begin));
}

// What sample_lattice does, for grey bytes: in one pass and without buffers, which compilers do not
// make of gathers.
template <class Reader, bool kInside>
void sample_bytes_at(const Lattice& at, float* out) {
  const Reader read(at);
  const __m512 start_x = _mm512_set1_ps(at.x), start_y = _mm512_set1_ps(at.y);
  const __m512 right = _mm512_set1_ps(at.right), down = _mm512_set1_ps(at.down);
  const __m512 last_x = _mm512_set1_ps(at.last_x), last_y = _mm512_set1_ps(at.last_y);
  const auto sample = [&](int first, __mmask16 wanted) {
    // Lanes that are not wanted read at (x, y), which lies inside where samples do.
    const __m512 u = _mm512_maskz_loadu_ps(wanted, at.u + first);
    const __m512 v = _mm512_maskz_loadu_ps(wanted, at.v + first);
    __m512 x = start_x + (right * u - down * v);
    __m512 y = start_y + (down * u + right * v);
    if (!kInside) {
      x = clamp_to(x, last_x);
      y = clamp_to(y, last_y);
    }
    const __m512i column = _mm512_cvttps_epi32(x), line = _mm512_cvttps_epi32(y);
    const __m512 weight_x = x - _mm512_cvtepi32_ps(column);
    const __m512 weight_y = y - _mm512_cvtepi32_ps(line);
    const Corners of = read(column, line);
    const __m512 top = of.top_left + weight_x * (of.top_right - of.top_left);
    const __m512 low = of.low_left + weight_x * (of.low_right - of.low_left);
    const __m512 value = top + weight_y * (low - top);
    _mm512_mask_storeu_ps(out + first, wanted, value * _mm512_set1_ps(kScale<std::uint8_t>));
  };
  const int count = at.count, whole = count / kLanes * kLanes;
  for (int first = 0; first < whole; first += kLanes) sample(first, 0xffff);
  if (whole < count) sample(whole, lanes_in(whole, 0, count));
}

template <class Reader>
void sample_bytes(const Lattice& at, float* out) {
  return at.inside ? sample_bytes_at<Reader, true>(at, out)
                   : sample_bytes_at<Reader, false>(at, out);
}
#endif

template <class T, int kChannels>
void sample_lattice(const Lattice& lattice, float* out) {
#if defined(__AVX512F__)
  if (kChannels == 1 && sizeof(T) == 1) {
#if defined(__AVX512VBMI__)
    if (lattice.narrow) return sample_bytes<Table>(lattice, out);
#endif
    if (!lattice.at_end) return sample_bytes<Gatherer>(lattice, out);
  }
#endif
  using Pixels = Pair<T, kChannels>;
  constexpr int kPixelBytes = kChannels * int(sizeof(T));
  const Lattice at = lattice;
  const char* const origin = static_cast<const char*>(at.origin);
  const std::int32_t row = std::int32_t(at.row_stride);
  alignas(64) std::int32_t offset[kBlock];  // bytes from the origin to a sample's upper left pixel
  alignas(64) float weight_x[kBlock], weight_y[kBlock];  // shares of the right and lower pixels
  alignas(64) Words upper[Pixels::kWords], lower[Pixels::kWords];
  alignas(64) float rest[kBlock];  // results of a block that ends amid a vector

  for (int first = 0; first < at.count; first += kBlock) {
    const int count = at.count - first < kBlock ? at.count - first : kBlock;
    const int padded = padded_count(count);
    const float* const u = at.u + first;
    const float* const v = at.v + first;
    for (int j = 0; j < padded; ++j) {
      const float x = clamp_to(at.x + (at.right * u[j] - at.down * v[j]), at.last_x);
      const float y = clamp_to(at.y + (at.down * u[j] + at.right * v[j]), at.last_y);
      const std::int32_t column = std::int32_t(x);
      const std::int32_t line = std::int32_t(y);
      weight_x[j] = x - float(column);
      weight_y[j] = y - float(line);
      offset[j] = line * row + column * kPixelBytes;
    }
    // What follows the samples may lie farther out than they do, where at_end does not look.
    for (int j = count; j < padded; ++j) offset[j] = offset[0];
    if (2 * kPixelBytes < 4 && at.at_end) {
      gather_two_bytes(origin, offset, padded, upper[0]);
      gather_two_bytes(origin + at.row_stride, offset, padded, lower[0]);
    } else {
      for (int k = 0; k < Pixels::kWords; ++k) {
        const char* const word = origin + Pixels::first_byte(k);
        gather(word, offset, padded, upper[k]);
        gather(word + at.row_stride, offset, padded, lower[k]);
      }
    }
    for (int c = 0; c < kChannels; ++c) {
      float* const found = out + std::int64_t(c) * at.count + first;
      float* const target = count == padded ? found : rest;
      for (int j = 0; j < padded; ++j) {
        const float top_left = Pixels::value(upper, j, c);
        const float low_left = Pixels::value(lower, j, c);
        const float top =
            top_left + weight_x[j] * (Pixels::value(upper, j, c + kChannels) - top_left);
        const float low =
            low_left + weight_x[j] * (Pixels::value(lower, j, c + kChannels) - low_left);
        target[j] = (top + weight_y[j] * (low - top)) * kScale<T>;
      }
      if (target == rest) std::memcpy(found, rest, count * sizeof(float));
    }
  }
}

Moments measure(const float* values, int count, float pivot) {
  // Running sums side by side, so many that any number of lanes adds up in the same order; four
  // values at a time, since sums pass through memory.
  constexpr int kSums = 2 * kLanes;
  alignas(64) float sums[kSums] = {}, squares[kSums] = {};
  const auto add = [&](const float* from, int many) {
    for (int j = 0; j < many; ++j) {
      const float value = from[j] - pivot;
      sums[j] += value;
      squares[j] += value * value;
    }
  };
  int first = 0;
  for (; first + 4 * kSums <= count; first += 4 * kSums) {
    for (int j = 0; j < kSums; ++j) {
      const float* const from = values + first + j;
      const float a = from[0] - pivot, b = from[kSums] - pivot;
      const float c = from[2 * kSums] - pivot, d = from[3 * kSums] - pivot;
      sums[j] += (a + b) + (c + d);
      squares[j] += (a * a + b * b) + (c * c + d * d);
    }
  }
  for (; first + kSums <= count; first += kSums) add(values + first, kSums);
  add(values + first, count - first);
  for (int half = kSums / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) {
      sums[j] += sums[j + half];
      squares[j] += squares[j + half];
    }
  }
  return {sums[0], squares[0]};
}

#if defined(__AVX512F__)
// Down the rows, a vector wide: what a vector takes from which part of a row is alike in all.
// Patches follow one another, so where the next one will be written is fetched meanwhile.
void unroll(const float* values, int rows, int columns, int halo, float offset, float gain,
            float* out) {
  const int width = columns + 2 * halo, inner_end = halo + columns;
  const __m512 offsets = _mm512_set1_ps(offset), gains = _mm512_set1_ps(gain);
  for (int first = 0; first < width; first += kLanes) {
    const __mmask16 front = lanes_in(first, 0, halo);
    const __mmask16 inner = lanes_in(first, halo, inner_end);
    const __mmask16 back = lanes_in(first, inner_end, width);
    const __mmask16 all = front | inner | back;
    const float* row = values + (first - halo);
    float* target = out + first;
    for (int k = 0; k < rows; ++k, row += columns, target += width) {
      __m512 value = _mm512_maskz_loadu_ps(front, row + columns);
      value = _mm512_mask_loadu_ps(value, inner, row);
      value = _mm512_mask_loadu_ps(value, back, row - columns);
      _mm512_mask_storeu_ps(target, all, (value - offsets) * gains);
      __builtin_prefetch(target + std::int64_t(rows) * width, 1);
    }
  }
}
#else
// Writes (value - offset) * gain, up to whole vectors, so that short rows need no loops of their
// own for what is left over.
inline void standardize_padded(const float* __restrict values, int count, float offset, float gain,
                               float* __restrict out) {
  for (int first = 0; first < count; first += kLanes) {
    for (int j = first; j < first + kLanes; ++j) out[j] = (values[j] - offset) * gain;
  }
}

void unroll(const float* values, int rows, int columns, int halo, float offset, float gain,
            float* out) {
  const int width = columns + 2 * halo;
  for (int k = 0; k < rows; ++k, values += columns, out += width) {
    float* const row = out + halo;
    if ((rows - 1 - k) * width >= kLanes) {  // what is written beyond this row is written over
      standardize_padded(values + columns - halo, halo, offset, gain, out);
      standardize_padded(values, columns, offset, gain, row);
      standardize_padded(values, halo, offset, gain, row + columns);
    } else {
      for (int j = 0; j < columns; ++j) row[j] = (values[j] - offset) * gain;
      for (int j = 0; j < halo; ++j) {
        out[j] = row[columns - halo + j];
        row[columns + j] = row[j];
      }
    }
  }
}
#endif

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
    unroll,
};

}  // namespace kernels
}  // namespace patchpose
