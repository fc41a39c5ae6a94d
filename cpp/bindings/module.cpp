// This folder is the only place that knows Python. Bindings unwrap arrays, check that they fit together, release the
// GIL and call the core. Argument rules and prose live in Python (_check.py); the checks here are the last line of
// defence.

#include <pybind11/stl.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "bindings.hpp"
#include "layout/bit_matrix.hpp"
#include "product/products.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"
#include "solve/admm.hpp"
#include "solve/diagonals.hpp"
#include "solve/greedy.hpp"
#include "solve/inverse.hpp"
#include "solve/quantized.hpp"

namespace py = pybind11;

namespace {

diba::MutableBitView mutable_bit_view(Words& words, std::size_t cols) {
  const diba::BitView view = bit_view(words, cols);
  return {words.mutable_data(), view.rows, view.cols};
}

void require_shape(const Floats& array, std::size_t rows, std::size_t cols, const char* what) {
  require(array.ndim() == 2 && extent(array, 0) == rows && extent(array, 1) == cols, what);
}

void require_length(const Floats& array, std::size_t length, const char* what) {
  require(array.ndim() == 1 && extent(array, 0) == length, what);
}

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
  require_shape(out, view.rows, cols, "out must have shape (rows, cols)");
  float* data = out.mutable_data();
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

using VectorProduct = void (*)(diba::BitView, bool, const float*, float*, int);
using MatrixProduct = void (*)(diba::BitView, bool, const float*, std::size_t, float*, int);

void vector_product(VectorProduct product, bool transposed, const Words& words, std::size_t cols, const Floats& x,
                    bool signs, Floats& out, int threads) {
  const diba::BitView view = bit_view(words, cols);
  require_length(x, transposed ? view.rows : cols, "x has the wrong length");
  require_length(out, transposed ? cols : view.rows, "out has the wrong length");
  const float* from = x.data();
  float* to = out.mutable_data();
  const Unlocked unlocked;
  product(view, signs, from, to, threads);
}

void matrix_product(MatrixProduct product, bool transposed, const Words& words, std::size_t cols, const Floats& x,
                    bool signs, Floats& out, int threads) {
  const diba::BitView view = bit_view(words, cols);
  require(x.ndim() == 2, "x must be two-dimensional");
  const std::size_t p = extent(x, 1);
  require_shape(x, transposed ? view.rows : cols, p, "x has the wrong shape");
  require_shape(out, transposed ? cols : view.rows, p, "out has the wrong shape");
  const float* from = x.data();
  float* to = out.mutable_data();
  const Unlocked unlocked;
  product(view, signs, from, p, to, threads);
}

template <VectorProduct kProduct, bool kTransposed>
void bind_vector_product(const Words& words, std::size_t cols, const Floats& x, bool signs, Floats& out, int threads) {
  vector_product(kProduct, kTransposed, words, cols, x, signs, out, threads);
}

template <MatrixProduct kProduct, bool kTransposed>
void bind_matrix_product(const Words& words, std::size_t cols, const Floats& x, bool signs, Floats& out, int threads) {
  matrix_product(kProduct, kTransposed, words, cols, x, signs, out, threads);
}

std::unique_ptr<diba::TiledMatrix> make_tiled(const Floats& x) {
  require(x.ndim() == 2, "x must be two-dimensional");
  return std::make_unique<diba::TiledMatrix>(x.data(), extent(x, 0), extent(x, 1));
}

void correlate(const Words& words, const diba::TiledMatrix& x, const Floats& weights, bool signs, Floats& out,
               int threads) {
  const diba::BitView view = bit_view(words, x.rows);
  require_length(weights, x.rows, "weights must have shape (cols,)");
  require_shape(out, x.cols, view.rows, "out must have shape (p, rows)");
  const float* w = weights.data();
  float* to = out.mutable_data();
  const Unlocked unlocked;
  diba::correlate(view, signs, x, w, to, threads);
}

void gram(const Words& words, std::size_t cols, const Floats& weights, bool signs, Floats& out, int threads) {
  const diba::BitView view = bit_view(words, cols);
  require_length(weights, cols, "weights must have shape (cols,)");
  require_shape(out, view.rows, view.rows, "out must have shape (rows, rows)");
  const float* w = weights.data();
  float* h = out.mutable_data();
  const Unlocked unlocked;
  diba::gram(view, signs, w, h, threads);
}

void invert_shifted(const Floats& gram, float shift, const std::optional<Floats>& w, diba::TiledMatrix& tiles,
                    diba::QuantizedMatrix& out, int threads) {
  const std::size_t k = out.size;
  require(tiles.rows == k && tiles.cols == k, "tiles must have the size of out");
  require_shape(gram, k, k, "gram must have shape (k, k)");
  if (w) require_length(*w, k, "w must have shape (k,)");
  const float* g = gram.data();
  const float* weights = w ? w->data() : nullptr;
  const Unlocked unlocked;
  diba::invert_shifted(g, k, shift, weights, tiles, threads);
  out.assign(tiles, threads);
}

void fit_magnitudes(Floats& outer, Floats& inner, const Floats& state) {
  require(state.ndim() == 2, "state must be two-dimensional");
  require_length(outer, extent(state, 0), "outer must have shape (rows,)");
  require_length(inner, extent(state, 1), "inner must have shape (k,)");
  const std::size_t rows = extent(state, 0);
  const std::size_t k = extent(state, 1);
  float* u = outer.mutable_data();
  float* v = inner.mutable_data();
  const float* x = state.data();
  const Unlocked unlocked;
  diba::fit_magnitudes(u, v, x, rows, k);
}

double step_sign_side(Words& words, Floats& outer, Floats& inner, Floats& state, const Floats& correlations,
                      const diba::QuantizedMatrix& inverse, const Floats& ratio, const Floats& weights, float penalty,
                      int threads) {
  const std::size_t k = inverse.size;
  const diba::MutableBitView view = mutable_bit_view(words, k);
  require_length(outer, view.rows, "outer must have shape (rows,)");
  require_length(inner, k, "inner must have shape (k,)");
  require_shape(state, view.rows, k, "state must have shape (rows, k)");
  require_shape(correlations, view.rows, k, "correlations must have shape (rows, k)");
  require_length(ratio, k, "ratio must have shape (k,)");
  require_length(weights, k, "weights must have shape (k,)");
  const diba::SignSide side{view, outer.mutable_data(), inner.mutable_data(), state.mutable_data()};
  const float* t = correlations.data();
  const float* r = ratio.data();
  const float* w = weights.data();
  const Unlocked unlocked;
  return diba::step_sign_side(side, t, inverse, r, w, penalty, threads);
}

double energy(const Floats& x) {
  const float* data = x.data();
  const auto count = static_cast<std::size_t>(x.size());
  const Unlocked unlocked;
  return diba::energy(data, count);
}

double product_energy(const Floats& gram_left, const Floats& gram_right, const Floats& d) {
  require(d.ndim() == 1, "d must be one-dimensional");
  const std::size_t k = extent(d, 0);
  require_shape(gram_left, k, k, "gram_left must have shape (k, k)");
  require_shape(gram_right, k, k, "gram_right must have shape (k, k)");
  const float* left = gram_left.data();
  const float* right = gram_right.data();
  const float* scales = d.data();
  const Unlocked unlocked;
  return diba::product_energy(left, right, scales, k);
}

double product_along(const Words& words, bool signs, const Floats& scale, const Floats& correlations, const Floats& d) {
  require(d.ndim() == 1, "d must be one-dimensional");
  const std::size_t k = extent(d, 0);
  const diba::BitView view = bit_view(words, k);
  require_length(scale, view.rows, "scale must have shape (rows,)");
  require_shape(correlations, view.rows, k, "correlations must have shape (rows, k)");
  const float* s = scale.data();
  const float* t = correlations.data();
  const float* scales = d.data();
  const Unlocked unlocked;
  return diba::product_along(view, signs, s, t, scales);
}

double fit_inner(const Floats& gram_left, const Floats& gram_right, const Floats& correlations, const Words& words,
                 bool signs, const Floats& scale, double energy, Floats& d2) {
  require(d2.ndim() == 1, "d2 must be one-dimensional");
  const std::size_t k = extent(d2, 0);
  require_shape(gram_left, k, k, "gram_left must have shape (k, k)");
  require_shape(gram_right, k, k, "gram_right must have shape (k, k)");
  const diba::BitView view = bit_view(words, k);
  require_shape(correlations, view.rows, k, "correlations must have shape (rows, k)");
  require_length(scale, view.rows, "scale must have shape (rows,)");
  const float* left = gram_left.data();
  const float* right = gram_right.data();
  const float* t = correlations.data();
  const float* d1 = scale.data();
  float* d = d2.mutable_data();
  const Unlocked unlocked;
  return diba::fit_inner(left, right, t, view, signs, d1, energy, d);
}

double residual_correlations(const Floats& gram, const Floats& correlations, const Floats& inner, const Words& words,
                             bool signs, bool fit, Floats& scale, Floats& out, int threads) {
  require(gram.ndim() == 2, "gram must be two-dimensional");
  const std::size_t k = extent(gram, 0);
  require_shape(gram, k, k, "gram must have shape (k, k)");
  const diba::BitView view = bit_view(words, k);
  require_shape(correlations, view.rows, k, "correlations must have shape (rows, k)");
  require_shape(out, view.rows, k, "out must have shape (rows, k)");
  require_length(inner, k, "inner must have shape (k,)");
  require_length(scale, view.rows, "scale must have shape (rows,)");
  const float* h = gram.data();
  const float* t = correlations.data();
  const float* d2 = inner.data();
  float* d = scale.mutable_data();
  float* g = out.mutable_data();
  const Unlocked unlocked;
  return diba::residual_correlations(h, t, d2, view, signs, fit, d, g, threads);
}

std::pair<std::uint64_t, double> greedy_rows(const Floats& gram, Floats& correlations, const Floats& scale,
                                             Words& words, bool signs, bool cyclic, int threads, bool pairs) {
  require(gram.ndim() == 2, "gram must be two-dimensional");
  const std::size_t k = extent(gram, 0);
  require_shape(gram, k, k, "gram must have shape (k, k)");
  const diba::MutableBitView view = mutable_bit_view(words, k);
  require_shape(correlations, view.rows, k, "correlations must have shape (rows, k)");
  require_length(scale, view.rows, "scale must have shape (rows,)");
  const float* h = gram.data();
  const float* d = scale.data();
  float* g = correlations.mutable_data();
  const Unlocked unlocked;
  const diba::FlipResult result = diba::greedy_rows(h, g, d, view, signs, cyclic, pairs, threads);
  return {result.flips, result.decrease};
}

#if PY_VERSION_HEX < 0x030E0000
std::terminate_handler other_terminations = nullptr;
unsigned long main_thread = 0;

bool is_finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

// The thread that finalizes has the GIL, and is the main one.
void hold_or_terminate() {
  if (is_finalizing() && std::current_exception() == nullptr && PyThread_get_thread_ident() != main_thread &&
      PyGILState_Check() == 0)
    diba::hold_thread();
  other_terminations();
}
#endif

// Holds the threads that Python ends in frames of other libraries, as Unlocked does in those of this module: their
// unwinding stops at the first destructor, with std::terminate and no exception, while the interpreter is finalizing.
void hold_threads_at_exit([[maybe_unused]] unsigned long main) {
#if PY_VERSION_HEX < 0x030E0000
  main_thread = main;
  if (other_terminations == nullptr) other_terminations = std::set_terminate(hold_or_terminate);
#endif
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Bit kernels of diba; the Python package checks arguments and documents them.";
  m.attr("__version__") = DIBA_VERSION;
  m.attr("compiler") = __VERSION__;
  m.def("isa", [] { return std::string(diba::active().name); });
  m.def("supported_isas", &diba::supported);
  m.def("select_isa", &diba::select, py::arg("name"));
  m.def("hold_threads_at_exit", &hold_threads_at_exit, py::arg("main_thread"));

  const auto words = py::arg("words").noconvert();
  const auto x = py::arg("x").noconvert();
  const auto weights = py::arg("weights").noconvert();
  const auto out = py::arg("out").noconvert();
  const py::arg cols("cols");
  const py::arg signs("signs");
  const py::arg threads("threads");
  m.def("pack", &pack, py::arg("dense").noconvert(), out, threads);
  m.def("unpack", &unpack, words, cols, py::arg("zero"), py::arg("one"), out, threads);
  m.def("transpose", &transpose, words, cols, out);
  m.def("tails_are_zero", &tails_are_zero, words, cols);
  m.def("matvec", &bind_vector_product<diba::matvec, false>, words, cols, x, signs, out, threads);
  m.def("matvec_t", &bind_vector_product<diba::matvec_t, true>, words, cols, x, signs, out, threads);
  m.def("matmul", &bind_matrix_product<diba::matmul, false>, words, cols, x, signs, out, threads);
  m.def("matmul_t", &bind_matrix_product<diba::matmul_t, true>, words, cols, x, signs, out, threads);
  py::class_<diba::TiledMatrix>(m, "TiledMatrix")
      .def(py::init(&make_tiled), x)
      .def(py::init<std::size_t, std::size_t>(), py::arg("rows"), cols);
  py::class_<diba::QuantizedMatrix>(m, "QuantizedMatrix").def(py::init<std::size_t>(), py::arg("size"));
  m.def("correlate", &correlate, words, py::arg("x"), weights, signs, out, threads);
  m.def("gram", &gram, words, cols, weights, signs, out, threads);
  const auto gram_matrix = py::arg("gram").noconvert();
  const auto correlations = py::arg("correlations").noconvert();
  const auto scale = py::arg("scale").noconvert();
  m.def("invert_shifted", &invert_shifted, gram_matrix, py::arg("shift"), py::arg("w").noconvert().none(true),
        py::arg("tiles"), out, threads);
  m.def("fit_magnitudes", &fit_magnitudes, py::arg("outer").noconvert(), py::arg("inner").noconvert(),
        py::arg("state").noconvert());
  m.def("step_sign_side", &step_sign_side, words, py::arg("outer").noconvert(), py::arg("inner").noconvert(),
        py::arg("state").noconvert(), correlations, py::arg("inverse"), py::arg("ratio").noconvert(), weights,
        py::arg("penalty"), threads);
  m.def("energy", &energy, x);
  m.def("product_energy", &product_energy, py::arg("gram_left").noconvert(), py::arg("gram_right").noconvert(),
        py::arg("d").noconvert());
  m.def("product_along", &product_along, words, signs, scale, correlations, py::arg("d").noconvert());
  m.def("fit_inner", &fit_inner, py::arg("gram_left").noconvert(), py::arg("gram_right").noconvert(), correlations,
        words, signs, scale, py::arg("energy"), py::arg("d2").noconvert());
  m.def("residual_correlations", &residual_correlations, gram_matrix, correlations, py::arg("inner").noconvert(), words,
        signs, py::arg("fit"), scale, out, threads);
  m.def("greedy_rows", &greedy_rows, gram_matrix, correlations, scale, words, signs, py::arg("cyclic"), threads,
        py::arg("pairs"));
  bind_prepared(m);
  bind_layer(m);
}
