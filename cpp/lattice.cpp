// Compiled once for each instruction set, with PATCHPOSE_ISA as its name. Everything is local to
// the file and nothing of the standard library is called: a function that two sets share might be
// linked from the wrong one. Plain loops, which compilers vectorise, but for reading pixels and for
// some of AVX-512.
#include "lattice.hpp"

#include <cstring>

#if defined(__AVX2__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own header
#endif
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace patchpose {
namespace {

// Samples that pass through the three loops at a time; their buffers stay in the nearest cache.
constexpr int kBlock = 256;

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "Pixels are told apart in words whose lowest byte comes first; build without the kernel"
#endif

using Words = std::uint32_t[kBlock];

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

// The four pixels of a sample, in 32-bit words whatever their type, so that the loops see equal
// lanes: those of the two upper pixels and as many of the two lower ones. In a pair, word k begins
// at byte first_byte(k) of the left pixel; `value` returns one of its 2 * kChannels values.
template <class T, int kChannels>
struct Pair;

template <>
struct Pair<std::uint8_t, 3> {
  // Two overlapping words of the six bytes, since further bytes may lie outside.
  static constexpr int kWords = 2;
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

template <class T, int kChannels>
struct Corners {
  using Sides = Pair<T, kChannels>;
  Words upper[Sides::kWords], lower[Sides::kWords];
  void read(const char* origin, std::int64_t stride, const std::int32_t* offset, int count) {
    for (int k = 0; k < Sides::kWords; ++k) {
      const char* const word = origin + Sides::first_byte(k);
      gather(word, offset, count, upper[k]);
      gather(word + stride, offset, count, lower[k]);
    }
  }
  float top_left(int j, int c) const { return Sides::value(upper, j, c); }
  float top_right(int j, int c) const { return Sides::value(upper, j, c + kChannels); }
  float low_left(int j, int c) const { return Sides::value(lower, j, c); }
  float low_right(int j, int c) const { return Sides::value(lower, j, c + kChannels); }
};

// Grey bytes: all four in one word, put together from pairs of bytes. Gathers would fetch words of
// which half is not wanted, some beyond the image's end, and take twice as long on some processors.
template <>
struct Corners<std::uint8_t, 1> {
  alignas(64) std::uint32_t words[kBlock];
  void read(const char* origin, std::int64_t stride, const std::int32_t* offset, int count) {
    const char* const below = origin + stride;
#if defined(__SSE2__)
    for (int j = 0; j < count; j += 8) {
      const __m128i top = eight_pairs(origin, offset + j), low = eight_pairs(below, offset + j);
      __m128i* const to = reinterpret_cast<__m128i*>(words + j);
      _mm_store_si128(to, _mm_unpacklo_epi16(top, low));
      _mm_store_si128(to + 1, _mm_unpackhi_epi16(top, low));
    }
#else
    for (int j = 0; j < count; ++j) {
      words[j] = pair(origin + offset[j]) | std::uint32_t(pair(below + offset[j])) << 16;
    }
#endif
  }
  static std::uint16_t pair(const char* at) {
    std::uint16_t both;
    std::memcpy(&both, at, sizeof both);
    return both;
  }
#if defined(__SSE2__)
  static __m128i eight_pairs(const char* from, const std::int32_t* offset) {
    __m128i pairs = _mm_cvtsi32_si128(pair(from + offset[0]));
    pairs = _mm_insert_epi16(pairs, pair(from + offset[1]), 1);
    pairs = _mm_insert_epi16(pairs, pair(from + offset[2]), 2);
    pairs = _mm_insert_epi16(pairs, pair(from + offset[3]), 3);
    pairs = _mm_insert_epi16(pairs, pair(from + offset[4]), 4);
    pairs = _mm_insert_epi16(pairs, pair(from + offset[5]), 5);
    pairs = _mm_insert_epi16(pairs, pair(from + offset[6]), 6);
    return _mm_insert_epi16(pairs, pair(from + offset[7]), 7);
  }
#endif
  float byte(int j, int k) const { return float(std::int32_t(words[j] >> (8 * k) & 0xff)); }
  float top_left(int j, int) const { return byte(j, 0); }
  float top_right(int j, int) const { return byte(j, 1); }
  float low_left(int j, int) const { return byte(j, 2); }
  float low_right(int j, int) const { return byte(j, 3); }
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

constexpr int padded_count(int count) { return (count + kLanes - 1) / kLanes * kLanes; }

#if defined(__AVX512F__)
// The lanes of a vector, whose first one is at `first`, that lie in [begin, end).
inline __mmask16 lanes_in(int first, int begin, int end) {
  const auto below = [first](int limit) {
    const int lanes = limit - first;
    return lanes <= 0 ? 0u : lanes >= kLanes ? 0xffffu : (1u << lanes) - 1u;
  };
  return __mmask16(below(end) & ~below(begin));
}
#endif

#if defined(__AVX512VBMI__)
inline __m512 clamp_to(__m512 value, __m512 last) {
  // The second operand of not-a-number is what _mm512_max_ps returns.
  return _mm512_min_ps(_mm512_max_ps(value, _mm512_setzero_ps()), last);
}

// What sample_lattice does for narrow lattices of grey bytes, whose pixels fit into four vectors: a
// permutation finds the four pixels of every lane's sample, where others read them one by one.
void sample_narrow(const Lattice& at, float* out) {
  static_assert(kNarrow == 16, "a row of pixels is a quarter of a vector");
  alignas(64) char bytes[kNarrow * kNarrow];
  for (int k = 0; k < kNarrow; ++k) {
    const char* const line = static_cast<const char*>(at.origin) + k * at.row_stride;
    std::memcpy(bytes + k * kNarrow, line, kNarrow);
  }
  const __m512i rows_0 = _mm512_load_si512(bytes), rows_4 = _mm512_load_si512(bytes + 64);
  const __m512i rows_8 = _mm512_load_si512(bytes + 128), rows_12 = _mm512_load_si512(bytes + 192);
  const __m512 start_x = _mm512_set1_ps(at.x), start_y = _mm512_set1_ps(at.y);
  const __m512 right = _mm512_set1_ps(at.right), down = _mm512_set1_ps(at.down);
  const __m512 last_x = _mm512_set1_ps(at.last_x), last_y = _mm512_set1_ps(at.last_y);
  const __m512i lowest = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
  const __m512i step = _mm512_set1_epi32((kNarrow + 1) << 24 | kNarrow << 16 | 1 << 8);
  const __m512i mask = _mm512_set1_epi32(0xff);
  for (int first = 0; first < at.count; first += kLanes) {
    const __m512 u = _mm512_loadu_ps(at.u + first), v = _mm512_loadu_ps(at.v + first);
    const __m512 x = clamp_to(start_x + (right * u - down * v), last_x);
    const __m512 y = clamp_to(start_y + (down * u + right * v), last_y);
    const __m512i column = _mm512_cvttps_epi32(x), line = _mm512_cvttps_epi32(y);
    const __m512 weight_x = x - _mm512_cvtepi32_ps(column);
    const __m512 weight_y = y - _mm512_cvtepi32_ps(line);
    const __m512i pixel = _mm512_add_epi32(_mm512_slli_epi32(line, 4), column);
    const __m512i index = _mm512_add_epi8(_mm512_shuffle_epi8(pixel, lowest), step);
    const __m512i four = _mm512_mask_blend_epi8(_mm512_movepi8_mask(index),
                                                _mm512_permutex2var_epi8(rows_0, index, rows_4),
                                                _mm512_permutex2var_epi8(rows_8, index, rows_12));
    const __m512 top_left = _mm512_cvtepi32_ps(_mm512_and_si512(four, mask));
    const __m512 top_right = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(four, 8), mask));
    const __m512 low_left = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(four, 16), mask));
    const __m512 low_right = _mm512_cvtepi32_ps(_mm512_srli_epi32(four, 24));
    const __m512 top = top_left + weight_x * (top_right - top_left);
    const __m512 low = low_left + weight_x * (low_right - low_left);
    const __m512 value = top + weight_y * (low - top);
    _mm512_mask_storeu_ps(out + first, lanes_in(first, 0, at.count),
                          value * _mm512_set1_ps(kScale<std::uint8_t>));
  }
}
#endif

template <class T, int kChannels, bool kInside>
void sample_wide(const Lattice& lattice, float* out) {
  constexpr int kPixelBytes = kChannels * int(sizeof(T));
  const Lattice at = lattice;
  const char* const origin = static_cast<const char*>(at.origin);
  const std::int32_t row = std::int32_t(at.row_stride);
  alignas(64) std::int32_t offset[kBlock];  // bytes from the origin to a sample's upper left pixel
  alignas(64) float weight_x[kBlock], weight_y[kBlock];  // shares of the right and lower pixels
  alignas(64) Corners<T, kChannels> corners;

  for (int first = 0; first < at.count; first += kBlock) {
    const int count = at.count - first < kBlock ? at.count - first : kBlock;
    const int whole = count / kLanes * kLanes, padded = padded_count(count);
    const float* const u = at.u + first;
    const float* const v = at.v + first;
    const auto locate = [&](int begin, int end, bool inside) {
      for (int j = begin; j < end; ++j) {
        float x = at.x + (at.right * u[j] - at.down * v[j]);
        float y = at.y + (at.down * u[j] + at.right * v[j]);
        if (!inside) {
          x = clamp_to(x, at.last_x);
          y = clamp_to(y, at.last_y);
        }
        const std::int32_t column = std::int32_t(x);
        const std::int32_t line = std::int32_t(y);
        weight_x[j] = x - float(column);
        weight_y[j] = y - float(line);
        offset[j] = line * row + column * kPixelBytes;
      }
    };
    locate(0, whole, kInside);
    locate(whole, padded, false);  // what follows the samples may lie farther out than they do
    corners.read(origin, at.row_stride, offset, padded);
    for (int c = 0; c < kChannels; ++c) {
      const auto blend = [&](int begin, int end, float* values) {
        for (int j = begin; j < end; ++j) {
          const float top_left = corners.top_left(j, c), low_left = corners.low_left(j, c);
          const float top = top_left + weight_x[j] * (corners.top_right(j, c) - top_left);
          const float low = low_left + weight_x[j] * (corners.low_right(j, c) - low_left);
          values[j - begin] = (top + weight_y[j] * (low - top)) * kScale<T>;
        }
      };
      float* const found = out + std::int64_t(c) * at.count + first;
      blend(0, whole, found);
      if (whole < count) {
        float rest[kLanes];
        blend(whole, whole + kLanes, rest);
        std::memcpy(found + whole, rest, (count - whole) * sizeof(float));
      }
    }
  }
}

template <class T, int kChannels>
void sample_lattice(const Lattice& lattice, float* out) {
#if defined(__AVX512VBMI__)
  if constexpr (kChannels == 1 && sizeof(T) == 1) {
    if (lattice.narrow) return sample_narrow(lattice, out);
  }
#endif
  return lattice.inside ? sample_wide<T, kChannels, true>(lattice, out)
                        : sample_wide<T, kChannels, false>(lattice, out);
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
