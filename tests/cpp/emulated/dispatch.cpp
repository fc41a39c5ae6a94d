// Takes the place of runtime/dispatch.cpp in tests of emulated instruction sets: those tables, then the specification.

#include "runtime/dispatch.hpp"

#include <stdexcept>

namespace diba {
namespace {

const Kernels& avx512_vbmi() {
  static const Kernels table = [] {
    Kernels kernels = kAvx512;
    kernels.name = "avx512vbmi";
    kernels.integer_tile = integer_tile_vnni;
    kernels.code_sums = code_sums_vnni;
    kernels.common_counts = common_counts_vpopcntdq;
    kernels.lookup = &kLookupAvx512Vbmi;
    return kernels;
  }();
  return table;
}

const Kernels& amx() {
  static const Kernels table = [] {
    Kernels kernels = avx512_vbmi();
    kernels.name = "amx";
    kernels.integer_tile = integer_tile_amx;
    return kernels;
  }();
  return table;
}

const Kernels* chosen = &kAvx512;

}  // namespace

std::vector<std::string> supported() { return {"amx", "avx512vbmi", "avx512", "scalar"}; }

const Kernels& active() { return *chosen; }

void select(const std::string& name) {
  for (const Kernels* kernels : {&amx(), &avx512_vbmi(), &kAvx512, &kScalar})
    if (name == kernels->name) {
      chosen = kernels;
      return;
    }
  throw std::invalid_argument(name);
}

}  // namespace diba
