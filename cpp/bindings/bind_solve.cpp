// cpp/src/solve: the steps of the solvers.

#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "solve/admm.hpp"
#include "solve/diagonals.hpp"
#include "solve/greedy.hpp"
#include "solve/input_side.hpp"
#include "solve/inverse.hpp"
#include "solve/latents.hpp"
#include "solve/quantized.hpp"
#include "solve/sign_products.hpp"

namespace py = pybind11;

namespace {

void invert_shifted(const Floats& gram, float shift, const std::optional<Floats>& w, diba::TiledMatrix& tiles,
                    diba::QuantizedMatrix& out, int threads) {
  const std::size_t k = out.size;
  require(tiles.rows == k && tiles.cols == k, "tiles must have the size of out");
  const float* g = elements(gram, k, k, "gram must have shape (k, k)");
  const float* weights = w ? elements(*w, k, "w must have shape (k,)") : nullptr;
  const Unlocked unlocked;
  diba::invert_shifted(g, k, shift, weights, tiles, threads);
  out.assign(tiles, threads);
}

void fit_magnitudes(Floats& outer, Floats& inner, const Floats& state, bool fixed) {
  require(state.ndim() == 2, "state must be two-dimensional");
  const std::size_t rows = extent(state, 0), k = extent(state, 1);
  float* u = elements(outer, rows, "outer must have shape (rows,)");
  float* v = elements(inner, k, "inner must have shape (k,)");
  const float* x = state.data();
  const Unlocked unlocked;
  diba::fit_magnitudes(u, v, x, rows, k, fixed);
}

double step_sign_side(Words& words, Floats& outer, Floats& inner, Floats& state, const Floats& correlations,
                      const diba::QuantizedMatrix& inverse, const Floats& ratio, const Floats& weights, float penalty,
                      bool fixed, int threads) {
  const std::size_t k = inverse.size;
  const diba::MutableBitView view = mutable_bit_view(words, k);
  const diba::SignSide side{view, elements(outer, view.rows, "outer must have shape (rows,)"),
                            elements(inner, k, "inner must have shape (k,)"),
                            elements(state, view.rows, k, "state must have shape (rows, k)"), fixed};
  const float* t = elements(correlations, view.rows, k, "correlations must have shape (rows, k)");
  const float* r = elements(ratio, k, "ratio must have shape (k,)");
  const float* w = elements(weights, k, "weights must have shape (k,)");
  const Unlocked unlocked;
  return diba::step_sign_side(side, t, inverse, r, w, penalty, threads);
}

// x + shift I + w w^T in 8 bits.
void quantize_shifted(const Floats& x, float shift, const std::optional<Floats>& w, diba::QuantizedMatrix& out,
                      int threads) {
  const std::size_t k = out.size;
  const float* g = elements(x, k, k, "x must have shape (k, k)");
  const float* weights = w ? elements(*w, k, "w must have shape (k,)") : nullptr;
  const Unlocked unlocked;
  out.assign(g, shift, weights, threads);
}

double step_input_side(Words& words, Floats& outer, Floats& inner, Floats& state, Floats& solution, Floats& eigen_state,
                       const Floats& values, const Floats& basis, const diba::QuantizedMatrix& gram,
                       const Floats& correlations, const Floats& image, const Floats& ratio, const Floats& weights,
                       float penalty, int iterations, bool fixed, int threads) {
  const std::size_t k = gram.size, n = length_of(values, "values must have shape (n,)");
  const diba::MutableBitView view = mutable_bit_view(words, k);
  require(view.rows == n, "words must have as many rows as values");
  const diba::SignSide side{view, elements(outer, n, "outer must have shape (n,)"),
                            elements(inner, k, "inner must have shape (k,)"),
                            elements(state, n, k, "state must have shape (n, k)"), fixed};
  const diba::InputVariables variables{elements(solution, n, k, "solution must have shape (n, k)"),
                                       elements(eigen_state, n, k, "eigen_state must have shape (n, k)")};
  const diba::InputSystem system{values.data(),
                                 elements(basis, n, n, "basis must have shape (n, n)"),
                                 gram,
                                 elements(correlations, n, k, "correlations must have shape (n, k)"),
                                 elements(image, n, k, "image must have shape (n, k)"),
                                 penalty,
                                 iterations};
  const float* r = elements(ratio, k, "ratio must have shape (k,)");
  const float* w = elements(weights, k, "weights must have shape (k,)");
  const Unlocked unlocked;
  return diba::step_input_side(side, variables, system, r, w, threads);
}

void correlate_signs(const Words& words, const diba::TiledMatrix& x, const Floats& weights, Floats& out, int threads) {
  const diba::BitView view = bit_view(words, x.rows);
  const float* w = elements(weights, view.cols, "weights must have shape (cols,)");
  float* to = elements(out, x.cols, view.rows, "out must have shape (x.cols, rows)");
  const Unlocked unlocked;
  diba::correlate_signs(view, x, w, to, threads);
}

void gram_signs(const Words& words, std::size_t cols, const Floats& weights, Floats& out, int threads) {
  const diba::BitView view = bit_view(words, cols);
  const float* w = elements(weights, view.cols, "weights must have shape (cols,)");
  float* h = elements(out, view.rows, view.rows, "out must have shape (rows, rows)");
  const Unlocked unlocked;
  diba::gram_signs(view, w, h, threads);
}

void weighted_gram(const Floats& x, const Floats& weights, Floats& out, int threads) {
  const std::size_t n = length_of(weights, "weights must have shape (n,)");
  require(out.ndim() == 2, "out must be two-dimensional");
  const std::size_t k = extent(out, 1);
  const float* data = elements(x, n, k, "x must have shape (n, k)");
  float* h = elements(out, k, k, "out must have shape (k, k)");
  const float* w = weights.data();
  const Unlocked unlocked;
  diba::weighted_gram(data, w, n, k, h, threads);
}

double energy(const Floats& x) {
  const float* data = x.data();
  const auto count = static_cast<std::size_t>(x.size());
  const Unlocked unlocked;
  return diba::energy(data, count);
}

double product_energy(const Floats& gram_left, const Floats& gram_right, const Floats& d) {
  const std::size_t k = length_of(d, "d must be one-dimensional");
  const float* left = elements(gram_left, k, k, "gram_left must have shape (k, k)");
  const float* right = elements(gram_right, k, k, "gram_right must have shape (k, k)");
  const float* scales = d.data();
  const Unlocked unlocked;
  return diba::product_energy(left, right, scales, k);
}

double product_along(const Words& words, bool signs, const Floats& scale, const Floats& correlations, const Floats& d) {
  const std::size_t k = length_of(d, "d must be one-dimensional");
  const diba::BitView view = bit_view(words, k);
  const float* s = elements(scale, view.rows, "scale must have shape (rows,)");
  const float* t = elements(correlations, view.rows, k, "correlations must have shape (rows, k)");
  const float* scales = d.data();
  const Unlocked unlocked;
  return diba::product_along(view, signs, s, t, scales);
}

double fit_inner(const Floats& gram_left, const Floats& gram_right, const Floats& correlations, const Words& words,
                 bool signs, const Floats& scale, double energy, Floats& d2, int threads) {
  const std::size_t k = length_of(d2, "d2 must be one-dimensional");
  const float* left = elements(gram_left, k, k, "gram_left must have shape (k, k)");
  const float* right = elements(gram_right, k, k, "gram_right must have shape (k, k)");
  const diba::BitView view = bit_view(words, k);
  const float* t = elements(correlations, view.rows, k, "correlations must have shape (rows, k)");
  const float* d1 = elements(scale, view.rows, "scale must have shape (rows,)");
  float* d = d2.mutable_data();
  const Unlocked unlocked;
  return diba::fit_inner(left, right, t, view, signs, d1, energy, d, threads);
}

double residual_correlations(const Floats& gram, const Floats& correlations, const Floats& inner, const Words& words,
                             bool signs, bool fit, Floats& scale, Floats& out, int threads) {
  const std::size_t k = length_of(inner, "inner must have shape (k,)");
  const diba::BitView view = bit_view(words, k);
  const float* h = elements(gram, k, k, "gram must have shape (k, k)");
  const float* t = elements(correlations, view.rows, k, "correlations must have shape (rows, k)");
  const float* d2 = inner.data();
  float* d = elements(scale, view.rows, "scale must have shape (rows,)");
  float* g = elements(out, view.rows, k, "out must have shape (rows, k)");
  const Unlocked unlocked;
  return diba::residual_correlations(h, t, d2, view, signs, fit, d, g, threads);
}

std::pair<std::uint64_t, double> greedy_rows(const Floats& gram, Floats& correlations, const Floats& scale,
                                             Words& words, bool signs, int threads, bool pairs) {
  require(gram.ndim() == 2, "gram must be two-dimensional");
  const std::size_t k = extent(gram, 0);
  const float* h = elements(gram, k, k, "gram must have shape (k, k)");
  const diba::MutableBitView view = mutable_bit_view(words, k);
  float* g = elements(correlations, view.rows, k, "correlations must have shape (rows, k)");
  const float* d = elements(scale, view.rows, "scale must have shape (rows,)");
  const Unlocked unlocked;
  const diba::FlipResult result = diba::greedy_rows(h, g, d, view, signs, pairs, threads);
  return {result.flips, result.decrease};
}

py::array_t<std::int64_t> step_latents(Floats& values, Floats& mean, const Floats& outer, const Floats& inner,
                                       const std::optional<Floats>& gradient, float fresh, float way, float farthest,
                                       float edge, std::size_t most, int threads) {
  const std::size_t rows = length_of(outer, "outer must have shape (rows,)");
  const std::size_t cols = length_of(inner, "inner must have shape (cols,)");
  const diba::Latents latents{elements(values, rows, cols, "values must have shape (rows, cols)"),
                              elements(mean, rows, cols, "mean must have shape (rows, cols)"),
                              outer.data(),
                              inner.data(),
                              rows,
                              cols};
  const float* g = gradient ? elements(*gradient, rows, cols, "gradient must have shape (rows, cols)") : nullptr;
  std::vector<std::int64_t> crossed;
  {
    const Unlocked unlocked;
    crossed = diba::step_latents(latents, g, {fresh, way, farthest, edge, most}, threads);
  }
  return py::array_t<std::int64_t>(static_cast<py::ssize_t>(crossed.size()), crossed.data());
}

}  // namespace

void bind_solve(py::module_& m) {
  const auto array = [](const char* name) { return py::arg(name).noconvert(); };
  const auto words = array("words"), gram = array("gram"), correlations = array("correlations");
  const auto scale = array("scale"), inner = array("inner"), outer = array("outer"), state = array("state");
  const py::arg signs("signs"), threads("threads");
  py::class_<diba::QuantizedMatrix>(m, "QuantizedMatrix").def(py::init<std::size_t>(), py::arg("size"));
  m.def("invert_shifted", &invert_shifted, gram, py::arg("shift"), array("w").none(true), py::arg("tiles"),
        array("out"), threads);
  m.def("quantize_shifted", &quantize_shifted, array("x"), py::arg("shift"), array("w").none(true), array("out"),
        threads);
  m.def("correlate_signs", &correlate_signs, words, py::arg("x"), array("weights"), array("out"), threads);
  m.def("gram_signs", &gram_signs, words, py::arg("cols"), array("weights"), array("out"), threads);
  m.def("weighted_gram", &weighted_gram, array("x"), array("weights"), array("out"), threads);
  m.def("step_input_side", &step_input_side, words, outer, inner, state, array("solution"), array("eigen_state"),
        array("values"), array("basis"), py::arg("gram"), correlations, array("image"), array("ratio"),
        array("weights"), py::arg("penalty"), py::arg("iterations"), py::arg("fixed"), threads);
  m.def("fit_magnitudes", &fit_magnitudes, outer, inner, state, py::arg("fixed"));
  m.def("step_sign_side", &step_sign_side, words, outer, inner, state, correlations, py::arg("inverse"), array("ratio"),
        array("weights"), py::arg("penalty"), py::arg("fixed"), threads);
  m.def("energy", &energy, array("x"));
  m.def("product_energy", &product_energy, array("gram_left"), array("gram_right"), array("d"));
  m.def("product_along", &product_along, words, signs, scale, correlations, array("d"));
  m.def("fit_inner", &fit_inner, array("gram_left"), array("gram_right"), correlations, words, signs, scale,
        py::arg("energy"), array("d2"), threads);
  m.def("residual_correlations", &residual_correlations, gram, correlations, inner, words, signs, py::arg("fit"), scale,
        array("out"), threads);
  m.def("step_latents", &step_latents, array("values"), array("mean"), outer, inner, array("gradient").none(true),
        py::arg("fresh"), py::arg("way"), py::arg("farthest"), py::arg("edge"), py::arg("most"), threads);
  m.def("greedy_rows", &greedy_rows, gram, correlations, scale, words, signs, threads, py::arg("pairs"));
}
