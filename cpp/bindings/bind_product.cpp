// cpp/src/product: products with packed bits.

#include <memory>

#include "bindings.hpp"
#include "product/products.hpp"

namespace py = pybind11;

namespace {

using VectorProduct = void (*)(diba::BitView, bool, const float*, float*, int);
using MatrixProduct = void (*)(diba::BitView, bool, const float*, std::size_t, float*, int);

template <VectorProduct kProduct, bool kTransposed>
void vector_product(const Words& words, std::size_t cols, const Floats& x, bool signs, Floats& out, int threads) {
  const diba::BitView view = bit_view(words, cols);
  const float* from = elements(x, kTransposed ? view.rows : cols, "x has the wrong length");
  float* to = elements(out, kTransposed ? cols : view.rows, "out has the wrong length");
  const Unlocked unlocked;
  kProduct(view, signs, from, to, threads);
}

template <MatrixProduct kProduct, bool kTransposed>
void matrix_product(const Words& words, std::size_t cols, const Floats& x, bool signs, Floats& out, int threads) {
  const diba::BitView view = bit_view(words, cols);
  require(x.ndim() == 2, "x must be two-dimensional");
  const std::size_t p = extent(x, 1);
  const float* from = elements(x, kTransposed ? view.rows : cols, p, "x has the wrong shape");
  float* to = elements(out, kTransposed ? cols : view.rows, p, "out has the wrong shape");
  const Unlocked unlocked;
  kProduct(view, signs, from, p, to, threads);
}

std::unique_ptr<diba::TiledMatrix> make_tiled(const Floats& x) {
  require(x.ndim() == 2, "x must be two-dimensional");
  return std::make_unique<diba::TiledMatrix>(x.data(), extent(x, 0), extent(x, 1));
}

void correlate(const Words& words, const diba::TiledMatrix& x, const Floats& weights, bool signs, Floats& out,
               int threads) {
  const diba::BitView view = bit_view(words, x.rows);
  const float* w = elements(weights, x.rows, "weights must have shape (cols,)");
  float* to = elements(out, x.cols, view.rows, "out must have shape (p, rows)");
  const Unlocked unlocked;
  diba::correlate(view, signs, x, w, to, threads);
}

void gram(const Words& words, std::size_t cols, const Floats& weights, bool signs, Floats& out, int threads) {
  const diba::BitView view = bit_view(words, cols);
  const float* w = elements(weights, cols, "weights must have shape (cols,)");
  float* h = elements(out, view.rows, view.rows, "out must have shape (rows, rows)");
  const Unlocked unlocked;
  diba::gram(view, signs, w, h, threads);
}

}  // namespace

void bind_product(py::module_& m) {
  const auto words = py::arg("words").noconvert();
  const auto x = py::arg("x").noconvert();
  const auto weights = py::arg("weights").noconvert();
  const auto out = py::arg("out").noconvert();
  const py::arg cols("cols"), signs("signs"), threads("threads");
  m.def("matvec", &vector_product<diba::matvec, false>, words, cols, x, signs, out, threads);
  m.def("matvec_t", &vector_product<diba::matvec_t, true>, words, cols, x, signs, out, threads);
  m.def("matmul", &matrix_product<diba::matmul, false>, words, cols, x, signs, out, threads);
  m.def("matmul_t", &matrix_product<diba::matmul_t, true>, words, cols, x, signs, out, threads);
  py::class_<diba::TiledMatrix>(m, "TiledMatrix")
      .def(py::init(&make_tiled), x)
      .def(py::init<std::size_t, std::size_t>(), py::arg("rows"), cols);
  m.def("correlate", &correlate, words, py::arg("x"), weights, signs, out, threads);
  m.def("gram", &gram, words, cols, weights, signs, out, threads);
}
