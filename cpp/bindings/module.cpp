// The module diba._core; what is in it is bound by the other files of this folder.

#include "bindings.hpp"

PYBIND11_MODULE(_core, m) {
  m.doc() = "Bit kernels of diba; the Python package checks arguments and documents them.";
  m.attr("__version__") = DIBA_VERSION;
  m.attr("compiler") = __VERSION__;
  bind_file(m);
  bind_layout(m);
  bind_runtime(m);
  bind_product(m);
  bind_tensors(m);
  bind_solve(m);
}
