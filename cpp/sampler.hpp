// Samples the neighbourhoods of keypoints on polar and square grids, from an image pyramid.
//
// Conventions: the centre of pixel (0, 0) is (0, 0); x points right, y points down; angles are
// degrees, clockwise on screen. Levels 2 o and 2 o + 1 of the pyramid share one geometry: their
// pixel i lies at base pixel i * 2^o. Outside an image its border is replicated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lattice.hpp"

namespace patchpose {

// One pyramid level; the memory belongs to the caller.
struct LevelView {
  const void* data;
  std::int64_t width;       // pixels, at least 2
  std::int64_t height;      // pixels, at least 2
  std::int64_t row_stride;  // bytes from a row to the next, a multiple of the value's size
};

// The levels of one image, base first. Values are interleaved: 1 (grey) or 3 channels.
struct PyramidView {
  std::vector<LevelView> levels;
  Dtype dtype;
  int channels;
};

// Parallel arrays, one entry for each keypoint; the memory belongs to the caller.
struct KeypointView {
  const double* xy;         // (count, 2), base pixels
  const double* window;     // (count,), base pixels: diameter of the polar, side of the square grid
  const double* angle_deg;  // (count,), degrees
  std::int64_t count;
};

struct PolarGrid {
  std::vector<double> radii;    // (rows,), ring radius in windows, innermost first
  std::vector<double> spacing;  // (rows,), distance between a ring's samples in windows
  int columns;                  // samples on a ring
  int halo;                     // columns repeated on each side, at most columns
  bool standardize;             // subtract a patch's mean, divide by its standard deviation
};

// Writes (count, 1, rows, columns + 2 halo) values in [0, 1] (uint8 / 255, uint16 / 65535, float32
// as is) to `patches`. Throws std::invalid_argument; then the patches are unspecified.
void sample_polar(const PyramidView& pyramid, const KeypointView& keypoints, const PolarGrid& grid,
                  const Kernels& kernels, int num_threads, float* patches);

// Writes (count, channels, size, size) values, scaled likewise. Throws std::invalid_argument.
void sample_square(const PyramidView& pyramid, const KeypointView& keypoints, int size,
                   const Kernels& kernels, int num_threads, float* patches);

}  // namespace patchpose
