// cpp/src/layout: packed bits.

#include "bindings.hpp"
#include "layout/bit_matrix.hpp"

namespace py = pybind11;

namespace {

void pack(const Floats& dense, Words& out, int threads) {
  require(dense.ndim() == 2, "dense must be two-dimensional");
  const diba::MutableBitView view = mutable_bit_view(out, extent(dense, 1));
  require(view.rows == extent(dense, 0), "out must have the rows of dense");
  const float* data = dense.data();
  const Unlocked unlocked;
  diba::pack(data, view, threads);
}

void unpack(const Words& words, std::size_t cols, float zero, float one, Floats& out, int threads) {
  const diba::BitView view = bit_view(words, cols);
  float* data = elements(out, view.rows, cols, "out must have shape (rows, cols)");
  const Unlocked unlocked;
  diba::unpack(view, zero, one, data, threads);
}

void transpose(const Words& words, std::size_t cols, Words& out) {
  const diba::BitView view = bit_view(words, cols);
  const diba::MutableBitView transposed = mutable_bit_view(out, view.rows);
  require(transposed.rows == cols, "out must have cols rows");
  const Unlocked unlocked;
  diba::transpose(view, transposed);
}

bool tails_are_zero(const Words& words, std::size_t cols) { return diba::tails_are_zero(bit_view(words, cols)); }

}  // namespace

void bind_layout(py::module_& m) {
  const auto words = py::arg("words").noconvert();
  const auto out = py::arg("out").noconvert();
  const py::arg cols("cols"), threads("threads");
  m.def("pack", &pack, py::arg("dense").noconvert(), out, threads);
  m.def("unpack", &unpack, words, cols, py::arg("zero"), py::arg("one"), out, threads);
  m.def("transpose", &transpose, words, cols, out);
  m.def("tails_are_zero", &tails_are_zero, words, cols);
}
