#include "sampler.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>

namespace patchpose {
namespace {

constexpr double kRadiansPerDegree = 3.14159265358979323846 / 180.0;
// Added to the variance of a patch: a flat patch stays flat. Two grey values of 255, squared.
constexpr double kVarianceFloor = (2.0 / 255.0) * (2.0 / 255.0);
// A thread costs more than it saves below this many keypoints.
constexpr std::int64_t kMinKeypointsPerThread = 32;

template <class T>
constexpr float value_scale() {
  return std::is_same<T, float>::value ? 1.0f : 1.0f / float(std::numeric_limits<T>::max());
}

// Positions of one line of samples in level pixels: (x + step_x * u[j], y + step_y * v[j]).
struct Line {
  double x, y;            // level pixels
  double step_x, step_y;  // level pixels per unit of u and v
  const float* u;         // (count,)
  const float* v;         // (count,)
  double reach;           // no |u[j]| or |v[j]| is greater
  int count;              // samples
};

// Buffers for one line, one set for each thread.
template <class T>
struct Scratch {
  explicit Scratch(int count, int channels)
      : offset(count),
        weight_x(count),
        weight_y(count),
        upper(2 * channels * count),
        lower(2 * channels * count) {}
  std::vector<std::int32_t> offset;       // values from the origin to a sample's upper left pixel
  std::vector<float> weight_x, weight_y;  // share of the right and of the lower pixels
  std::vector<T> upper, lower;            // the two upper and the two lower pixels of a sample
};

// One axis of a line, as single precision distances from an integer pixel near the line's start:
// coordinates far from zero would lose the fraction.
struct Axis {
  Axis(double position, double step, double reach, std::int64_t size) {
    const double first = std::floor(position - std::abs(step) * reach);
    origin = first > 0.0 ? std::int64_t(std::min(first, double(size - 2))) : 0;
    start = float(position - double(origin));
    // Just below the last pixel, so that a sample's right neighbour exists.
    last = std::nextafter(float(size - 1 - origin), 0.0f);
    this->step = float(step);
  }
  std::int64_t origin;  // pixels
  float start, step;    // pixels from the origin
  float last;           // pixels from the origin
};

// Restricts to [0, last]; not-a-number, from overflow far outside an image, becomes 0.
inline float clamp_to(float value, float last) {
  const float positive = value > 0.0f ? value : 0.0f;
  return positive < last ? positive : last;
}

// Samples a line bilinearly; channel c of sample j goes to out[c * channel_stride + j]. Three plain
// loops, of which compilers vectorise the first and the last.
template <class T, int kChannels>
void sample_line(const LevelView& level, const Line& line, Scratch<T>& scratch, float* out,
                 std::int64_t channel_stride) {
  const Axis ax(line.x, line.step_x, line.reach, level.width);
  const Axis ay(line.y, line.step_y, line.reach, level.height);
  const std::int64_t stride = level.row_stride / std::int64_t(sizeof(T));
  const std::int32_t row = std::int32_t(stride);
  const int count = line.count;
  std::int32_t* __restrict offset = scratch.offset.data();
  float* __restrict weight_x = scratch.weight_x.data();
  float* __restrict weight_y = scratch.weight_y.data();
  for (int j = 0; j < count; ++j) {
    const float x = clamp_to(ax.start + ax.step * line.u[j], ax.last);
    const float y = clamp_to(ay.start + ay.step * line.v[j], ay.last);
    const std::int32_t column = std::int32_t(x);
    const std::int32_t line_y = std::int32_t(y);
    weight_x[j] = x - float(column);
    weight_y[j] = y - float(line_y);
    offset[j] = line_y * row + column * kChannels;
  }

  constexpr int kPair = 2 * kChannels;
  const T* const origin =
      static_cast<const T*>(level.data) + ay.origin * stride + ax.origin * kChannels;
  T* __restrict upper = scratch.upper.data();
  T* __restrict lower = scratch.lower.data();
  for (int j = 0; j < count; ++j) {
    const T* const pixel = origin + offset[j];
    std::memcpy(upper + kPair * j, pixel, kPair * sizeof(T));
    std::memcpy(lower + kPair * j, pixel + stride, kPair * sizeof(T));
  }

  for (int c = 0; c < kChannels; ++c) {
    float* __restrict plane = out + c * channel_stride;
    for (int j = 0; j < count; ++j) {
      const float top_left = float(upper[kPair * j + c]);
      const float low_left = float(lower[kPair * j + c]);
      const float top =
          top_left + weight_x[j] * (float(upper[kPair * j + kChannels + c]) - top_left);
      const float low =
          low_left + weight_x[j] * (float(lower[kPair * j + kChannels + c]) - low_left);
      plane[j] = (top + weight_y[j] * (low - top)) * value_scale<T>();
    }
  }
}

// The half octave nearest to the distance between samples (base pixels), among the levels there.
int choose_level(double spacing_px, std::size_t level_count) {
  const double half_octave = std::floor(2.0 * std::log2(spacing_px) + 0.5);
  return int(std::clamp(half_octave, 0.0, double(level_count - 1)));
}

double level_pixels_per_base_pixel(int level) { return std::ldexp(1.0, -(level / 2)); }

// In place over `rows` lines of `columns` values, whose starts lie `stride` values apart; the
// statistics leave the first and the last `halo` columns out.
void standardize(float* patch, int rows, int columns, int halo) {
  constexpr int kLanes = 8;  // independent sums, so that the additions overlap
  const int stride = columns + 2 * halo;
  double sums[kLanes] = {}, squares[kLanes] = {};
  for (int k = 0; k < rows; ++k) {
    const float* const ring = patch + k * stride + halo;
    int j = 0;
    for (; j + kLanes <= columns; j += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const double value = ring[j + lane];
        sums[lane] += value;
        squares[lane] += value * value;
      }
    }
    for (; j < columns; ++j) {
      sums[0] += ring[j];
      squares[0] += double(ring[j]) * ring[j];
    }
  }
  double sum = 0.0, square = 0.0;
  for (int lane = 0; lane < kLanes; ++lane) {
    sum += sums[lane];
    square += squares[lane];
  }
  const double count = double(rows) * columns;
  const double mean = sum / count;
  const double variance = std::max(square / count - mean * mean, 0.0);
  const float offset = float(mean);
  const float gain = float(1.0 / std::sqrt(variance + kVarianceFloor));
  for (int i = 0; i < rows * stride; ++i) patch[i] = (patch[i] - offset) * gain;
}

// Calls work(first, last) on contiguous ranges of [0, count), on up to num_threads threads, this
// one among them. Rethrows the exception of the first range that failed.
template <class Work>
void for_ranges(std::int64_t count, int num_threads, const Work& work) {
  const std::int64_t parts =
      std::clamp<std::int64_t>(count / kMinKeypointsPerThread, 1, std::max(num_threads, 1));
  std::vector<std::exception_ptr> failures(parts);
  const auto run = [&](std::int64_t part) noexcept {
    try {
      work(count * part / parts, count * (part + 1) / parts);
    } catch (...) {
      failures[part] = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(parts - 1);
  std::int64_t started = 1;
  try {
    for (; started < parts; ++started) threads.emplace_back(run, started);
  } catch (const std::system_error&) {
    // No more threads to be had: the rest is done here.
  }
  run(0);
  for (std::int64_t part = started; part < parts; ++part) run(part);
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

void check_keypoint(const KeypointView& keypoints, std::int64_t i) {
  if (!std::isfinite(keypoints.xy[2 * i]) || !std::isfinite(keypoints.xy[2 * i + 1])) {
    throw std::invalid_argument("xy_px: expected finite values, got another at keypoint " +
                                std::to_string(i));
  }
  if (!(keypoints.window[i] > 0.0) || !std::isfinite(keypoints.window[i])) {
    throw std::invalid_argument(
        "window_px: expected finite values above 0, got another at keypoint " + std::to_string(i));
  }
  if (!std::isfinite(keypoints.angle_deg[i])) {
    throw std::invalid_argument("angle_deg: expected finite values, got another at keypoint " +
                                std::to_string(i));
  }
}

void check_pyramid(const PyramidView& pyramid) {
  if (pyramid.levels.empty()) throw std::invalid_argument("levels: expected at least 1, got 0");
  for (const LevelView& level : pyramid.levels) {
    if (level.width < 2 || level.height < 2) {
      throw std::invalid_argument("levels: expected at least 2 x 2 pixels, got " +
                                  std::to_string(level.width) + " x " +
                                  std::to_string(level.height));
    }
    if (level.row_stride > std::numeric_limits<std::int32_t>::max() / level.height) {
      throw std::invalid_argument("levels: expected less than 2 GiB a level, got " +
                                  std::to_string(level.row_stride) + " bytes in each of " +
                                  std::to_string(level.height) + " rows");
    }
  }
}

template <class T>
void sample_polar_range(const PyramidView& pyramid, const KeypointView& keypoints,
                        const PolarGrid& grid, std::int64_t first, std::int64_t last,
                        float* patches) {
  const int rows = int(grid.radii.size());
  const int width = grid.columns + 2 * grid.halo;
  Scratch<T> scratch(grid.columns, 1);
  std::vector<double> directions(2 * grid.columns);  // cosine and sine of each column at angle 0
  for (int j = 0; j < grid.columns; ++j) {
    const double angle = j * 360.0 / grid.columns * kRadiansPerDegree;
    directions[2 * j] = std::cos(angle);
    directions[2 * j + 1] = std::sin(angle);
  }
  std::vector<float> cosines(grid.columns), sines(grid.columns);
  for (std::int64_t i = first; i < last; ++i) {
    check_keypoint(keypoints, i);
    const double angle = keypoints.angle_deg[i] * kRadiansPerDegree;
    const double cosine = std::cos(angle), sine = std::sin(angle);
    for (int j = 0; j < grid.columns; ++j) {
      cosines[j] = float(directions[2 * j] * cosine - directions[2 * j + 1] * sine);
      sines[j] = float(directions[2 * j] * sine + directions[2 * j + 1] * cosine);
    }
    float* const patch = patches + i * rows * width;
    for (int k = 0; k < rows; ++k) {
      const double window = keypoints.window[i];
      const int index = choose_level(grid.spacing[k] * window, pyramid.levels.size());
      const double scale = level_pixels_per_base_pixel(index);
      const double radius = grid.radii[k] * window * scale;
      const Line ring = {keypoints.xy[2 * i] * scale,
                         keypoints.xy[2 * i + 1] * scale,
                         radius,
                         radius,
                         cosines.data(),
                         sines.data(),
                         1.0,
                         grid.columns};
      float* const out = patch + k * width;
      sample_line<T, 1>(pyramid.levels[index], ring, scratch, out + grid.halo, 0);
      std::copy_n(out + grid.columns, grid.halo, out);
      std::copy_n(out + grid.halo, grid.halo, out + grid.halo + grid.columns);
    }
    if (grid.standardize) standardize(patch, rows, grid.columns, grid.halo);
  }
}

template <class T, int kChannels>
void sample_square_range(const PyramidView& pyramid, const KeypointView& keypoints, int size,
                         std::int64_t first, std::int64_t last, float* patches) {
  Scratch<T> scratch(size, kChannels);
  std::vector<float> ticks(size);
  const double middle = (size - 1) / 2.0;
  for (int j = 0; j < size; ++j) ticks[j] = float(j - middle);
  for (std::int64_t i = first; i < last; ++i) {
    check_keypoint(keypoints, i);
    const double spacing = keypoints.window[i] / size;
    const int index = choose_level(spacing, pyramid.levels.size());
    const double scale = level_pixels_per_base_pixel(index);
    const double angle = keypoints.angle_deg[i] * kRadiansPerDegree;
    const double step_x = spacing * scale * std::cos(angle);
    const double step_y = spacing * scale * std::sin(angle);
    float* const patch = patches + i * kChannels * size * size;
    for (int row = 0; row < size; ++row) {
      const double down = row - middle;
      const Line line = {keypoints.xy[2 * i] * scale - down * step_y,
                         keypoints.xy[2 * i + 1] * scale + down * step_x,
                         step_x,
                         step_y,
                         ticks.data(),
                         ticks.data(),
                         middle,
                         size};
      sample_line<T, kChannels>(pyramid.levels[index], line, scratch, patch + row * size,
                                std::int64_t(size) * size);
    }
  }
}

// Calls work with a null pointer to the pyramid's value type.
template <class Work>
void with_dtype(Dtype dtype, const Work& work) {
  switch (dtype) {
    case Dtype::kUint8:
      return work(static_cast<std::uint8_t*>(nullptr));
    case Dtype::kUint16:
      return work(static_cast<std::uint16_t*>(nullptr));
    case Dtype::kFloat32:
      return work(static_cast<float*>(nullptr));
  }
}

}  // namespace

void sample_polar(const PyramidView& pyramid, const KeypointView& keypoints, const PolarGrid& grid,
                  int num_threads, float* patches) {
  check_pyramid(pyramid);
  if (pyramid.channels != 1) {
    throw std::invalid_argument("levels: expected 1 channel, got " +
                                std::to_string(pyramid.channels));
  }
  if (grid.radii.size() != grid.spacing.size()) {
    throw std::invalid_argument("spacing: expected " + std::to_string(grid.radii.size()) +
                                " values as in radii, got " + std::to_string(grid.spacing.size()));
  }
  if (grid.columns < 1 || grid.halo < 0 || grid.halo > grid.columns) {
    throw std::invalid_argument("halo: expected 0 to columns, got " + std::to_string(grid.halo));
  }
  with_dtype(pyramid.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_ranges(keypoints.count, num_threads, [&](std::int64_t first, std::int64_t last) {
      sample_polar_range<T>(pyramid, keypoints, grid, first, last, patches);
    });
  });
}

void sample_square(const PyramidView& pyramid, const KeypointView& keypoints, int size,
                   int num_threads, float* patches) {
  check_pyramid(pyramid);
  if (pyramid.channels != 1 && pyramid.channels != 3) {
    throw std::invalid_argument("levels: expected 1 or 3 channels, got " +
                                std::to_string(pyramid.channels));
  }
  if (size < 1)
    throw std::invalid_argument("size: expected 1 or more, got " + std::to_string(size));
  with_dtype(pyramid.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_ranges(keypoints.count, num_threads, [&](std::int64_t first, std::int64_t last) {
      if (pyramid.channels == 1) {
        sample_square_range<T, 1>(pyramid, keypoints, size, first, last, patches);
      } else {
        sample_square_range<T, 3>(pyramid, keypoints, size, first, last, patches);
      }
    });
  });
}

}  // namespace patchpose
