// Python module cv_patchpose._core: checks shapes, allocates, releases the GIL, calls the sampler.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "sampler.hpp"

namespace py = pybind11;
using patchpose::Dtype;
using patchpose::KeypointView;
using patchpose::PolarGrid;
using patchpose::PyramidView;
using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;

namespace {

Dtype dtype_of(const py::array& level) {
  if (py::isinstance<py::array_t<std::uint8_t>>(level)) return Dtype::kUint8;
  if (py::isinstance<py::array_t<std::uint16_t>>(level)) return Dtype::kUint16;
  if (py::isinstance<py::array_t<float>>(level)) return Dtype::kFloat32;
  throw std::invalid_argument("levels: expected uint8, uint16 or float32, got " +
                              std::string(py::str(level.dtype())));
}

// Views the levels, (height, width) or (height, width, channels) each; `levels` must outlive it.
PyramidView view_pyramid(const std::vector<py::array>& levels) {
  if (levels.empty()) throw std::invalid_argument("levels: expected at least 1, got 0");
  PyramidView pyramid;
  pyramid.dtype = dtype_of(levels.front());
  pyramid.channels = levels.front().ndim() == 3 ? int(levels.front().shape(2)) : 1;
  for (const py::array& level : levels) {
    if (level.ndim() != 2 && level.ndim() != 3) {
      throw std::invalid_argument("levels: expected 2 or 3 axes, got " +
                                  std::to_string(level.ndim()));
    }
    const int channels = level.ndim() == 3 ? int(level.shape(2)) : 1;
    if (dtype_of(level) != pyramid.dtype || channels != pyramid.channels) {
      throw std::invalid_argument("levels: expected one dtype and number of channels, got several");
    }
    if (!(level.flags() & py::array::c_style)) {
      throw std::invalid_argument("levels: expected C-contiguous arrays, got another");
    }
    pyramid.levels.push_back({level.data(), level.shape(1), level.shape(0), level.strides(0)});
  }
  return pyramid;
}

void check_shape(const char* name, const Doubles& values, const std::vector<py::ssize_t>& shape) {
  const std::vector<py::ssize_t> actual(values.shape(), values.shape() + values.ndim());
  if (actual != shape) {
    throw std::invalid_argument(std::string(name) + ": expected shape " +
                                std::string(py::str(py::tuple(py::cast(shape)))) + ", got " +
                                std::string(py::str(py::tuple(py::cast(actual)))));
  }
}

KeypointView view_keypoints(const Doubles& xy, const Doubles& window, const Doubles& angle_deg) {
  const py::ssize_t count = xy.ndim() > 0 ? xy.shape(0) : 0;
  check_shape("xy_px", xy, {count, 2});
  check_shape("window_px", window, {count});
  check_shape("angle_deg", angle_deg, {count});
  return {xy.data(), window.data(), angle_deg.data(), count};
}

py::array_t<float> sample_polar(const std::vector<py::array>& levels, const Doubles& xy_px,
                                const Doubles& window_px, const Doubles& angle_deg,
                                std::vector<double> radii, std::vector<double> spacing, int columns,
                                int halo, bool standardize, int num_threads) {
  const PyramidView pyramid = view_pyramid(levels);
  const KeypointView keypoints = view_keypoints(xy_px, window_px, angle_deg);
  const PolarGrid grid = {std::move(radii), std::move(spacing), columns, halo, standardize};
  const py::ssize_t rows = py::ssize_t(grid.radii.size());
  py::array_t<float> patches(
      {keypoints.count, py::ssize_t(1), rows, columns + py::ssize_t(2) * halo});
  float* const out = patches.mutable_data();
  const patchpose::Kernels& kernels = patchpose::find_kernels();  // under the GIL: reads environ
  {
    py::gil_scoped_release release;
    patchpose::sample_polar(pyramid, keypoints, grid, kernels, num_threads, out);
  }
  return patches;
}

py::array_t<float> sample_square(const std::vector<py::array>& levels, const Doubles& xy_px,
                                 const Doubles& window_px, const Doubles& angle_deg, int size,
                                 int num_threads) {
  const PyramidView pyramid = view_pyramid(levels);
  const KeypointView keypoints = view_keypoints(xy_px, window_px, angle_deg);
  const py::ssize_t side = size;
  py::array_t<float> patches({keypoints.count, py::ssize_t(pyramid.channels), side, side});
  float* const out = patches.mutable_data();
  const patchpose::Kernels& kernels = patchpose::find_kernels();
  {
    py::gil_scoped_release release;
    patchpose::sample_square(pyramid, keypoints, size, kernels, num_threads, out);
  }
  return patches;
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "Samples patches around keypoints from an image pyramid.";
  module.def("sample_polar", &sample_polar, py::arg("levels"), py::arg("xy_px"),
             py::arg("window_px"), py::arg("angle_deg"), py::kw_only(), py::arg("radii"),
             py::arg("spacing"), py::arg("columns"), py::arg("halo"), py::arg("standardize"),
             py::arg("num_threads"), "Returns (N, 1, rows, columns + 2 halo) float32.");
  module.def("sample_square", &sample_square, py::arg("levels"), py::arg("xy_px"),
             py::arg("window_px"), py::arg("angle_deg"), py::kw_only(), py::arg("size"),
             py::arg("num_threads"), "Returns (N, channels, size, size) float32.");
  module.def("simd_names", &patchpose::kernel_names,
             "Returns what PATCHPOSE_SIMD may be here: instruction sets, the default first.");
}
