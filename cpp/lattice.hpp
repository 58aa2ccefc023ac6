// The innermost loops of the sampler. lattice.cpp is compiled once for each instruction set that
// the build knows, and find_kernels picks one while the program runs. All of them round alike, so
// that their results are the same bit for bit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace patchpose {

// 32-bit lanes of the widest vectors. Whole vectors only: what is left over would take as long.
constexpr int kLanes = 16;
// Side of the squares of pixels that four vectors can hold, a byte each.
constexpr int kNarrow = 16;

enum class Dtype { kUint8, kUint16, kFloat32 };

// Samples of one level at x + right * u[j] - down * v[j] and y + down * u[j] + right * v[j], in
// pixels from an origin near them: single precision would lose the fraction of coordinates far from
// zero.
struct Lattice {
  const void* origin;       // the pixel that distances count from
  std::int64_t row_stride;  // bytes from a row of pixels to the next
  float x, y;
  float right, down;
  float last_x, last_y;  // just below the last pixel: a right and a lower neighbour exist
  const float* u;        // (count,), followed by any numbers up to whole vectors
  const float* v;        // likewise
  int count;             // samples
  bool inside;           // none would have to be moved to the level's edge
  bool narrow;           // all lie in the first kNarrow x kNarrow pixels, their neighbours too
};

// Writes channel c of sample j to out[c * count + j], in [0, 1] for integers.
using SampleLattice = void (*)(const Lattice& lattice, float* out);

struct Moments {
  double sum, square;
};

// Sums of value - pivot and its square. A pivot among the values keeps single precision exact
// enough.
using Measure = Moments (*)(const float* values, int count, float pivot);

// Writes (value - offset) * gain of (rows, columns) values to (rows, columns + 2 halo), the last
// columns of a row in front of its first ones too and the first behind the last. Values are read up
// to whole vectors.
using Unroll = void (*)(const float* values, int rows, int columns, int halo, float offset,
                        float gain, float* out);

struct Kernels {
  const char* name;
  SampleLattice sample[3][2];  // by Dtype; 1 channel, 3 channels
  Measure measure;
  Unroll unroll;
};

// The instruction sets that this build knows and this processor has, best first.
std::vector<std::string> kernel_names();

// The kernels of the instruction set that the environment variable PATCHPOSE_SIMD names, of the
// best one where it is not set. Throws std::invalid_argument.
const Kernels& find_kernels();

}  // namespace patchpose
