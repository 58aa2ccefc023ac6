#include "sampler.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace patchpose {
namespace {

constexpr double kRadiansPerDegree = 3.14159265358979323846 / 180.0;
// Added to the variance of a patch: a flat patch stays flat. Two grey values of 255, squared.
constexpr double kVarianceFloor = (2.0 / 255.0) * (2.0 / 255.0);
// A thread costs more than it saves below this many keypoints.
constexpr std::int64_t kMinKeypointsPerThread = 32;
// Beyond what single precision holds, 0 times a window is not 0 and a sample lies anywhere. Windows
// above this one look the same: all but their middle is far outside the image.
constexpr double kMostUnit = 1e30;
// So that a place in a patch, and a few vectors more, can be counted in an int.
constexpr std::int64_t kMostValues = 1 << 30;

// One axis of a lattice, as single precision distances from an integer pixel near its start.
struct Axis {
  // `reach` in pixels: no sample lies farther from the position.
  Axis(double position, double reach, std::int64_t size) {
    const double first = position - reach;
    origin = first > 0.0 ? std::int64_t(std::min(first, double(size - 2))) : 0;
    const double middle = position - double(origin);
    start = float(middle);
    // Just below the last pixel, so that a sample's right neighbour exists.
    last = below(float(size - 1 - origin));
    // Single precision may put a sample a little farther out than it lies; close to 0 by more than
    // its share.
    const double slack = 1e-6 * (std::abs(middle) + reach + 1.0);
    const double farthest = middle + reach + slack;
    inside = middle - reach > slack && farthest < double(size - 1 - origin);
    narrow = origin + kNarrow <= size && farthest < kNarrow - 1;
  }
  // The next smaller number, for positive ones; std::nextafter is a slow call.
  static float below(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    --bits;
    std::memcpy(&value, &bits, sizeof bits);
    return value;
  }
  std::int64_t origin;  // pixels
  float start;          // pixels from the origin
  float last;           // pixels from the origin
  bool inside;          // none has to be moved to the first or the last pixel
  bool narrow;          // all lie in the first kNarrow pixels, right neighbours too
};

// Positions of samples in a lattice's own axes, as far again readable as the kernels want it.
struct Positions {
  explicit Positions(std::int64_t count) : u(count + kLanes), v(u.size()) {}
  std::vector<float> u, v;
};

// What samples one image: the kernel for its values, and its levels.
class LevelReader {
 public:
  LevelReader(const PyramidView& pyramid, const Kernels& kernels)
      : pyramid_(pyramid),
        sample_(kernels.sample[int(pyramid.dtype)][pyramid.channels == 3]),
        pixel_bytes_(pyramid.channels * bytes_of(pyramid.dtype)) {
    for (std::size_t level = 0; level < pyramid.levels.size(); ++level) {
      scale_.push_back(std::ldexp(1.0, -int(level / 2)));
    }
    for (std::size_t level = 1; level < pyramid.levels.size(); ++level) {
      least_spacing_.push_back(std::exp2(0.5 * double(level) - 0.25));
    }
  }

  // The half octave nearest to the distance between samples (base pixels), among the levels there;
  // fast where `guess` is near.
  int choose_level(double spacing_px, int guess) const {
    while (guess > 0 && spacing_px < least_spacing_[guess - 1]) --guess;
    while (guess < int(least_spacing_.size()) && spacing_px >= least_spacing_[guess]) ++guess;
    return guess;
  }

  // Samples `count` positions of a level, the first of them `first`: those at (x, y) + unit_px *
  // turned (u, v). `turn` holds the angle's cosine and sine; no sample lies farther than `reach_px`
  // from (x, y) along either axis of the image.
  void sample(int index, const double* xy, const double* turn, double unit_px, double reach_px,
              const Positions& positions, int first, int count, float* out) const {
    const LevelView& level = pyramid_.levels[index];
    const double scale = scale_[index];
    const double right = scale * turn[0], down = scale * turn[1];
    const double unit = std::min(unit_px, kMostUnit);
    const Axis x(xy[0] * scale, scale * reach_px, level.width);
    const Axis y(xy[1] * scale, scale * reach_px, level.height);
    const char* const data = static_cast<const char*>(level.data);
    const Lattice lattice = {
        data + y.origin * level.row_stride + x.origin * pixel_bytes_,
        level.row_stride,
        x.start,
        y.start,
        float(unit * right),
        float(unit * down),
        x.last,
        y.last,
        positions.u.data() + first,
        positions.v.data() + first,
        count,
        x.inside && y.inside,
        x.narrow && y.narrow,
    };
    sample_(lattice, out);
  }

 private:
  static int bytes_of(Dtype dtype) {
    return dtype == Dtype::kUint8 ? 1 : dtype == Dtype::kUint16 ? 2 : 4;
  }
  const PyramidView& pyramid_;
  SampleLattice sample_;
  std::int64_t pixel_bytes_;
  std::vector<double> scale_;          // level pixels in a base pixel
  std::vector<double> least_spacing_;  // of level 1, 2, ...: halfway, in octaves, to the one before
};

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
  } catch (const std::exception&) {
    // No more threads, or memory for them, to be had: the rest is done here.
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

void check_values(std::int64_t rows, std::int64_t columns) {
  if (rows * columns > kMostValues) {
    throw std::invalid_argument("grid: expected at most 2^30 values a patch, got " +
                                std::to_string(rows) + " x " + std::to_string(columns));
  }
}

// What makes a patch's mean 0 and its deviation 1: (value - offset) * gain.
struct Standard {
  float offset = 0.0f, gain = 1.0f;
};

Standard find_standard(const Kernels& kernels, const float* values, int count) {
  const float pivot = values[0];
  const Moments total = kernels.measure(values, count, pivot);
  const double mean = total.sum / count;
  const double variance = std::max(total.square / count - mean * mean, 0.0);
  return {float(pivot + mean), float(1.0 / std::sqrt(variance + kVarianceFloor))};
}

struct Turn {
  explicit Turn(double angle_deg)
      : cosine_sine{std::cos(angle_deg * kRadiansPerDegree),
                    std::sin(angle_deg * kRadiansPerDegree)} {}
  double cosine_sine[2];
};

}  // namespace

void sample_polar(const PyramidView& pyramid, const KeypointView& keypoints, const PolarGrid& grid,
                  const Kernels& kernels, int num_threads, float* patches) {
  check_pyramid(pyramid);
  if (pyramid.channels != 1) {
    throw std::invalid_argument("levels: expected 1 channel, got " +
                                std::to_string(pyramid.channels));
  }
  if (grid.radii.empty()) throw std::invalid_argument("radii: expected at least 1, got 0");
  if (grid.radii.size() != grid.spacing.size()) {
    throw std::invalid_argument("spacing: expected " + std::to_string(grid.radii.size()) +
                                " values as in radii, got " + std::to_string(grid.spacing.size()));
  }
  if (grid.columns < 1 || grid.halo < 0 || grid.halo > grid.columns) {
    throw std::invalid_argument("halo: expected 0 to columns, got " + std::to_string(grid.halo));
  }
  check_values(std::int64_t(grid.radii.size()), grid.columns + std::int64_t(2) * grid.halo);
  const LevelReader reader(pyramid, kernels);
  const int rows = int(grid.radii.size()), columns = grid.columns;
  Positions disc(rows * columns);  // of each ring and column at angle 0, in windows
  for (int j = 0; j < rows * columns; ++j) {
    const double angle = j % columns * 360.0 / columns * kRadiansPerDegree;
    disc.u[j] = float(grid.radii[j / columns] * std::cos(angle));
    disc.v[j] = float(grid.radii[j / columns] * std::sin(angle));
  }
  for_ranges(keypoints.count, num_threads, [&](std::int64_t first, std::int64_t last) {
    std::vector<float> values(rows * columns + kLanes);
    for (std::int64_t i = first; i < last; ++i) {
      check_keypoint(keypoints, i);
      const Turn turn(keypoints.angle_deg[i]);
      const double window = keypoints.window[i];
      // Rings of one level together, but those of grey bytes that are narrow wherever they lie on
      // their own: a pixel goes to the fraction of the first sample's position, one to the last
      // one's neighbour. For all kernels alike, since what they count from decides the rounding.
      const double narrow = pyramid.dtype == Dtype::kUint8 ? (kNarrow - 2.02) / 2 / window : 0.0;
      int level = reader.choose_level(grid.spacing[0] * window, 0);
      for (int k = 0, end; k < rows; k = end) {
        const bool is_narrow = level == 0 && grid.radii[k] < narrow;
        int next = level;
        for (end = k + 1; end < rows; ++end) {
          next = reader.choose_level(grid.spacing[end] * window, level);
          if (next != level || (is_narrow && grid.radii[end] >= narrow)) break;
        }
        reader.sample(level, keypoints.xy + 2 * i, turn.cosine_sine, window,
                      grid.radii[end - 1] * window, disc, k * columns, (end - k) * columns,
                      &values[k * columns]);
        level = next;
      }
      Standard standard;
      if (grid.standardize) standard = find_standard(kernels, values.data(), rows * columns);
      kernels.unroll(values.data(), rows, columns, grid.halo, standard.offset, standard.gain,
                     patches + i * rows * (columns + 2 * grid.halo));
    }
  });
}

void sample_square(const PyramidView& pyramid, const KeypointView& keypoints, int size,
                   const Kernels& kernels, int num_threads, float* patches) {
  check_pyramid(pyramid);
  if (pyramid.channels != 1 && pyramid.channels != 3) {
    throw std::invalid_argument("levels: expected 1 or 3 channels, got " +
                                std::to_string(pyramid.channels));
  }
  if (size < 1)
    throw std::invalid_argument("size: expected 1 or more, got " + std::to_string(size));
  check_values(size, size);
  const LevelReader reader(pyramid, kernels);
  const double middle = (size - 1) / 2.0;
  const std::int64_t area = std::int64_t(size) * size;
  Positions ticks(area);  // of each sample, in spacings from the centre
  for (std::int64_t j = 0; j < area; ++j) {
    ticks.u[j] = float(double(j % size) - middle);
    ticks.v[j] = float(double(j / size) - middle);
  }
  for_ranges(keypoints.count, num_threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      check_keypoint(keypoints, i);
      const Turn turn(keypoints.angle_deg[i]);
      const double spacing = keypoints.window[i] / size;
      const double reach =
          (std::abs(turn.cosine_sine[0]) + std::abs(turn.cosine_sine[1])) * spacing * middle;
      reader.sample(reader.choose_level(spacing, 0), keypoints.xy + 2 * i, turn.cosine_sine,
                    spacing, reach, ticks, 0, int(area), patches + i * pyramid.channels * area);
    }
  });
}

}  // namespace patchpose
