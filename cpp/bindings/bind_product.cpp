// cpp/src/product, with arrays: exact products, and packed bits for fast ones, whose calls take microseconds.

#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "product/bit_counts.hpp"
#include "product/exact.hpp"
#include "product/packed_store.hpp"
#include "product/sparse_rows.hpp"
#include "runtime/dispatch.hpp"

namespace py = pybind11;

namespace {

// ---- exact products

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

std::unique_ptr<diba::TiledMatrix> make_tiled(const Floats& x, bool transposed, float divisor) {
  require(x.ndim() == 2, "x must be two-dimensional");
  const std::size_t rows = extent(x, transposed ? 1 : 0), cols = extent(x, transposed ? 0 : 1);
  const float* from = x.data();
  const Unlocked unlocked;
  return std::make_unique<diba::TiledMatrix>(from, rows, cols, transposed, divisor);
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

// ---- exact products of numbers of one or two bits

using Integers = py::array_t<std::int32_t, py::array::c_style>;

diba::BitNumbers bit_numbers(const Words& words, std::size_t cols) {
  require(words.ndim() == 3 && (extent(words, 0) == 1 || extent(words, 0) == 2) &&
              extent(words, 2) == diba::words_for(cols),
          "words must have shape (1 or 2, rows, ceil(cols / 64))");
  require(cols <= diba::kMostCountedCols, "there are too many columns");
  return {words.data(), extent(words, 1), cols, static_cast<int>(extent(words, 0))};
}

void bit_products(const Words& a, const Words& b, std::size_t cols, Integers& out, int threads) {
  const diba::BitNumbers left = bit_numbers(a, cols), right = bit_numbers(b, cols);
  require(out.ndim() == 2 && extent(out, 0) == left.rows && extent(out, 1) == right.rows,
          "out must have shape (rows of a, rows of b)");
  std::int32_t* to = out.mutable_data();
  const Unlocked unlocked;
  diba::bit_products(left, right, to, threads);
}

void round_rows(const Floats& x, Floats& steps, bool found, Words& words, int threads) {
  require(x.ndim() == 2, "x must be two-dimensional");
  const std::size_t rows = extent(x, 0), cols = extent(x, 1);
  require(bit_numbers(words, cols).rows == rows, "words must have the rows and columns of x");
  float* const of_rows = elements(steps, rows, "steps must have an entry for each row");
  std::uint64_t* const to = words.mutable_data();
  const float* const from = x.data();
  const int bits = static_cast<int>(extent(words, 0));
  const Unlocked unlocked;
  diba::round_rows(from, rows, cols, bits, found, of_rows, to, threads);
}

void bit_linear(const Floats& x, const Words& weight, const Floats& scale, const std::optional<Floats>& bias, int bits,
                Floats& out, int threads) {
  require(x.ndim() == 2, "x must be two-dimensional");
  require(bits == 1 || bits == 2, "bits must be 1 or 2");
  const std::size_t count = extent(x, 0);
  const diba::BitNumbers numbers = bit_numbers(weight, extent(x, 1));
  const float* of_rows = elements(scale, numbers.rows, "scale must have an entry for each row of weight");
  const float* shift = bias ? elements(*bias, numbers.rows, "bias must have an entry for each row of weight") : nullptr;
  float* to = elements(out, count, numbers.rows, "out must have shape (rows of x, rows of weight)");
  const float* from = x.data();
  const Unlocked unlocked;
  diba::bit_linear(numbers, of_rows, shift, bits, from, count, to, threads);
}

// ---- products with a sparse matrix

using Starts = py::array_t<std::uint32_t, py::array::c_style>;
template <typename Column>
using Columns = py::array_t<Column, py::array::c_style>;

// The rows, whose arrays must live as long.
template <typename Column>
diba::SparseRows sparse_rows(const Starts& starts, const Columns<Column>& columns, const Floats& values,
                             std::size_t cols) {
  require(starts.ndim() == 1 && extent(starts, 0) > 0, "starts must have shape (rows + 1,)");
  require(columns.ndim() == 1, "columns must be one-dimensional");
  const std::size_t entries = extent(columns, 0);
  const float* of_entries = elements(values, entries, "values must have as many entries as columns");
  const diba::SparseRows rows{starts.data(), columns.data(), of_entries, extent(starts, 0) - 1, cols, sizeof(Column)};
  require(diba::is_valid(rows, entries), "starts must ascend from 0 to the number of columns, each below cols");
  return rows;
}

template <typename Column>
void add_sparse(const Starts& starts, const Columns<Column>& columns, const Floats& values, std::size_t cols,
                const Floats& x, Floats& out, int threads) {
  const diba::SparseRows rows = sparse_rows(starts, columns, values, cols);
  require(x.ndim() == 2, "x must have shape (count, cols)");
  const std::size_t count = extent(x, 0);
  const float* from = elements(x, count, cols, "x must have shape (count, cols)");
  float* to = elements(out, count, rows.rows, "out must have shape (count, rows)");
  const Unlocked unlocked;
  diba::add_sparse(rows, from, count, to, threads);
}

// ---- fast products of a factorization, from arrays

std::vector<float> scales_of(const Floats& alpha, std::size_t rows) {
  const std::size_t length = length_of(alpha, "alpha must be one-dimensional");
  require(length == 1 || length == rows, "alpha must have one entry, or one for each row");
  return length == rows ? std::vector<float>(alpha.data(), alpha.data() + rows)
                        : std::vector<float>(rows, *alpha.data());
}

std::unique_ptr<diba::PackedFactorization> make_packed(const Floats& d1, const Words& b1, const Floats& d2,
                                                       const Words& b2, const Floats& d3, bool signs) {
  constexpr const char* kWhat = "diagonals must be one-dimensional";
  const std::size_t rows = length_of(d1, kWhat), inner = length_of(d2, kWhat), cols = length_of(d3, kWhat);
  const diba::BitView left = bit_view(b1, inner), right = bit_view(b2, cols);
  require(left.rows == rows && right.rows == inner, "factors must fit together");
  const diba::Scales scales{d1.data(), d2.data(), d3.data()};
  const diba::Kernels& kernels = diba::active();
  const Unlocked unlocked;
  return std::make_unique<diba::PackedFactorization>(left, right, signs, scales, kernels);
}

// diag(alpha) S + E, with the arrays of E.
template <typename Column>
struct Binarized : diba::PackedFactorization {
  Binarized(std::shared_ptr<const diba::Packed> signs, std::vector<float> alpha, const diba::SparseRows& rows,
            Starts starts_, Columns<Column> columns_, Floats values_)
      : PackedFactorization(std::move(signs), std::move(alpha), rows),
        starts(std::move(starts_)),
        columns(std::move(columns_)),
        values(std::move(values_)) {}

  Starts starts;
  Columns<Column> columns;
  Floats values;
};

// alpha has one entry, or one for each row.
template <typename Column>
std::shared_ptr<diba::PackedFactorization> make_binarized(const Floats& alpha, const Words& signs, std::size_t cols,
                                                          const Starts& starts, const Columns<Column>& columns,
                                                          const Floats& values) {
  const diba::BitView view = bit_view(signs, cols);
  const diba::SparseRows rows = sparse_rows(starts, columns, values, cols);
  require(rows.rows == view.rows, "starts must have shape (rows + 1,)");
  std::vector<float> scales = scales_of(alpha, view.rows);
  const diba::Kernels& kernels = diba::active();
  std::shared_ptr<const diba::Packed> packed;
  {
    const Unlocked unlocked;
    packed = std::make_shared<const diba::Packed>(view, true, kernels);
  }
  return std::make_shared<Binarized<Column>>(std::move(packed), std::move(scales), rows, starts, columns, values);
}

void multiply(const diba::PackedFactorization& self, const Floats& x, const std::optional<Floats>& bias, Floats& out,
              int threads) {
  require(x.ndim() == 2, "x must have shape (count, cols)");
  const std::size_t count = extent(x, 0);
  const float* from = elements(x, count, self.bits->cols(), "x must have shape (count, cols)");
  float* to = elements(out, count, self.bits->rows(), "out must have shape (count, rows)");
  const float* shift = bias ? elements(*bias, self.bits->rows(), "bias must have shape (rows,)") : nullptr;
  const Unlocked unlocked;
  self.multiply(from, count, shift, to, threads);
}

std::vector<py::ssize_t> shape_of(const Floats& rows, py::ssize_t last) {
  std::vector<py::ssize_t> shape(rows.shape(), rows.shape() + rows.ndim());
  shape.back() = last;
  return shape;
}

// M x for each vector along the last axis of a float32 array that can be read as it is; None for anything else, which
// Python then checks or converts.
py::object try_multiply(const diba::PackedFactorization& self, const py::handle& x, int threads) {
  if (!Floats::check_(x) || !self.bits->runs_on(diba::active())) return py::none();
  const auto rows = py::reinterpret_borrow<Floats>(x);
  const py::ssize_t axes = rows.ndim();
  const std::size_t cols = self.bits->cols();
  if (axes == 0 || extent(rows, static_cast<int>(axes) - 1) != cols) return py::none();
  if (reinterpret_cast<std::uintptr_t>(rows.data()) % alignof(float) != 0) return py::none();
  const auto length = static_cast<py::ssize_t>(self.bits->rows());
  Floats out = axes == 1 ? Floats(length) : Floats(shape_of(rows, length));
  const float* from = rows.data();
  const std::size_t count = static_cast<std::size_t>(rows.size()) / cols;
  float* to = out.mutable_data();
  {
    const Unlocked unlocked;
    self.multiply(from, count, nullptr, to, threads);
  }
  return out;
}

void bind_packed(py::module_& m) {
  using Factorization = diba::PackedFactorization;
  const auto array = [](const char* name) { return py::arg(name).noconvert(); };
  py::class_<Factorization, std::shared_ptr<Factorization>>(m, "Packed")
      .def(py::init(&make_packed), array("d1"), array("b1"), array("d2"), array("b2"), array("d3"), py::arg("signs"))
      .def_property_readonly("nbytes", &Factorization::bytes)
      .def_property_readonly("isa", [](const Factorization& self) { return std::string(self.bits->kernels().name); })
      .def("multiply", &multiply, array("x"), array("bias").none(true), array("out"), py::arg("threads"))
      .def("try_multiply", &try_multiply, py::arg("x"), py::arg("threads"));
}

// One overload for each width of columns.
template <typename Column>
void bind_sparse(py::module_& m) {
  const auto array = [](const char* name) { return py::arg(name).noconvert(); };
  m.def("add_sparse", &add_sparse<Column>, array("starts"), array("columns"), array("values"), py::arg("cols"),
        array("x"), array("out"), py::arg("threads"));
  m.def("pack_binarized", &make_binarized<Column>, array("alpha"), array("signs"), py::arg("cols"), array("starts"),
        array("columns"), array("values"));
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
      .def(py::init(&make_tiled), x, py::arg("transposed") = false, py::arg("divisor") = 1.0F)
      .def(py::init<std::size_t, std::size_t>(), py::arg("rows"), cols);
  m.def("correlate", &correlate, words, py::arg("x"), weights, signs, out, threads);
  m.def("gram", &gram, words, cols, weights, signs, out, threads);
  m.def("round_rows", &round_rows, py::arg("x").noconvert(), py::arg("steps").noconvert(), py::arg("found"),
        py::arg("words").noconvert(), threads);
  m.def("bit_products", &bit_products, py::arg("a").noconvert(), py::arg("b").noconvert(), cols, out, threads);
  m.def("bit_linear", &bit_linear, py::arg("x").noconvert(), py::arg("weight").noconvert(),
        py::arg("scale").noconvert(), py::arg("bias").noconvert(), py::arg("bits"), out, threads);
  bind_packed(m);
  bind_sparse<std::uint8_t>(m);
  bind_sparse<std::uint16_t>(m);
  bind_sparse<std::uint32_t>(m);
}
