// Takes the place of runtime/dispatch.cpp in tests of emulated instruction sets: those tables, then the specification.

#include "runtime/dispatch.hpp"

#include <stdexcept>

namespace diba {
namespace {

const Kernels& avx512_vnni() {
  static const Kernels table = [] {
    Kernels kernels = kAvx512;
    kernels.name = "avx512vnni";
    kernels.integer_tile = integer_tile_vnni;
    kernels.lookup = &kLookupAvx512Vbmi;
    return kernels;
  }();
  return table;
}

const Kernels* chosen = &kAvx512;

}  // namespace

std::vector<std::string> supported() { return {"avx512vnni", "avx512", "scalar"}; }

const Kernels& active() { return *chosen; }

void select(const std::string& name) {
  for (const Kernels* kernels : {&avx512_vnni(), &kAvx512, &kScalar})
    if (name == kernels->name) {
      chosen = kernels;
      return;
    }
  throw std::invalid_argument(name);
}

}  // namespace diba
