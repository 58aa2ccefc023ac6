// Chooses the kernels that suit the processor.
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "lattice.hpp"

namespace patchpose {
namespace kernels {

extern const Kernels baseline;
#ifdef PATCHPOSE_HAS_AVX2
extern const Kernels avx2;
#endif
#ifdef PATCHPOSE_HAS_AVX512
extern const Kernels avx512;
#endif
#ifdef PATCHPOSE_HAS_AVX512VBMI
extern const Kernels avx512vbmi;
#endif

}  // namespace kernels

namespace {

// Those that run here, best first. The checks include that the operating system saves the
// registers.
std::vector<const Kernels*> usable_kernels() {
  std::vector<const Kernels*> usable;
#ifdef PATCHPOSE_HAS_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
#ifdef PATCHPOSE_HAS_AVX512VBMI
    if (__builtin_cpu_supports("avx512vbmi")) usable.push_back(&kernels::avx512vbmi);
#endif
    usable.push_back(&kernels::avx512);
  }
#endif
#ifdef PATCHPOSE_HAS_AVX2
  if (__builtin_cpu_supports("avx2")) usable.push_back(&kernels::avx2);
#endif
  usable.push_back(&kernels::baseline);
  return usable;
}

const std::vector<const Kernels*>& all_kernels() {
  static const std::vector<const Kernels*> all = usable_kernels();
  return all;
}

}  // namespace

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const Kernels* kernels : all_kernels()) names.push_back(kernels->name);
  return names;
}

const Kernels& find_kernels() {
  const char* const wanted = std::getenv("PATCHPOSE_SIMD");
  if (wanted == nullptr || *wanted == '\0') return *all_kernels().front();
  std::string known;
  for (const Kernels* kernels : all_kernels()) {
    if (std::string(wanted) == kernels->name) return *kernels;
    known += std::string(known.empty() ? "" : ", ") + kernels->name;
  }
  throw std::invalid_argument("PATCHPOSE_SIMD: expected one of " + known + ", got " + wanted);
}

}  // namespace patchpose
