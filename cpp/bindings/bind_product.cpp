// cpp/src/product: exact products, and packed bits for fast ones, whose calls take microseconds.

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "product/bit_counts.hpp"
#include "product/code_rows.hpp"
#include "product/exact.hpp"
#include "product/fingerprint.hpp"
#include "product/packed_store.hpp"
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

// ---- fast products of a factorization, from arrays

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

// ---- fast products of tensors, by address: diba/torch/ops/packed.py has checked them

using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// d1, b1, d2, b2, d3; bits in rows of whole bytes.
using FactorAddresses = std::array<Address, 5>;

// From so many vectors on, to check all the bits costs little compared with the product.
constexpr std::size_t kVectorsForWhole = 32;

// The packed bits of a layer, or of one matrix, that the caller owns, and fingerprints that tell whether they are still
// the same. Bits past the last column are ignored.
class PackedTensors {
 public:
  PackedTensors(Address b1, Address b2, std::size_t rows, std::size_t inner, std::size_t cols, bool signs,
                const diba::Kernels& kernels)
      : b1_(at<const std::uint8_t>(b1), rows * diba::bytes_for(inner)),
        b2_(std::in_place, at<const std::uint8_t>(b2), inner * diba::bytes_for(cols)),
        packed_(diba::packed_store().get(read(b1, rows, inner).view(), read(b2, inner, cols).view(), signs, kernels)) {}
  PackedTensors(Address bits, std::size_t rows, std::size_t cols, bool signs, bool transposed,
                const diba::Kernels& kernels)
      : b1_(at<const std::uint8_t>(bits), rows * diba::bytes_for(cols)),
        packed_(std::make_shared<const diba::Packed>(
            (transposed ? diba::transposed(read(bits, rows, cols).view()) : read(bits, rows, cols)).view(), signs,
            kernels)) {}

  const diba::Packed& packed() const { return *packed_; }

  bool holds(Address b1, Address b2, bool whole) const {
    return b1_.matches(at<const std::uint8_t>(b1), whole) && (!b2_ || b2_->matches(at<const std::uint8_t>(b2), whole));
  }

  void multiply(const FactorAddresses& f, const float* x, std::size_t count, const float* bias, float* y,
                int threads) const {
    packed_->multiply(*latest_.get(*packed_, scales(f)), x, count, bias, y, threads);
  }

  void gradients(const FactorAddresses& f, const float* x, const float* g, std::size_t count,
                 const diba::Gradients& out, int threads) const {
    const diba::Scales s = scales(f);
    const auto turned = latest_turned_.get(packed_->transposed(), {s.d3, s.d2, s.d1});
    packed_->gradients(*latest_.get(*packed_, s), *turned, x, g, count, out, threads);
  }

 private:
  static diba::BitMatrix read(Address bytes, std::size_t rows, std::size_t cols) {
    diba::BitMatrix bits = diba::matrix_of_bytes(at<const std::uint8_t>(bytes), rows, cols);
    diba::clear_tails(bits.mutable_view());
    return bits;
  }

  static diba::Scales scales(const FactorAddresses& f) {
    return {at<const float>(f[0]), at<const float>(f[2]), at<const float>(f[4])};
  }

  diba::Fingerprint b1_;
  std::optional<diba::Fingerprint> b2_;
  std::shared_ptr<const diba::Packed> packed_;
  diba::LatestDiagonals latest_, latest_turned_;
};

std::unique_ptr<PackedTensors> make_layer(Address b1, Address b2, std::size_t rows, std::size_t inner, std::size_t cols,
                                          bool signs) {
  const diba::Kernels& kernels = diba::active();
  const Unlocked unlocked;
  return std::make_unique<PackedTensors>(b1, b2, rows, inner, cols, signs, kernels);
}

std::unique_ptr<PackedTensors> make_matrix(Address bits, std::size_t rows, std::size_t cols, bool signs,
                                           bool transposed) {
  const diba::Kernels& kernels = diba::active();
  const Unlocked unlocked;
  return std::make_unique<PackedTensors>(bits, rows, cols, signs, transposed, kernels);
}

// Returns false, without a product, if the bits are not those that were packed; `whole`: all of them are compared.
bool multiply_tensors(const PackedTensors& self, const FactorAddresses& f, Address x, std::size_t count, Address bias,
                      Address y, int threads, bool whole) {
  const Unlocked unlocked;
  if (!self.holds(f[1], f[3], whole || count >= kVectorsForWhole)) return false;
  self.multiply(f, at<const float>(x), count, at<const float>(bias), at<float>(y), threads);
  return true;
}

// The same for one matrix.
bool multiply_matrix(const PackedTensors& self, Address bits, Address x, std::size_t count, Address y, int threads,
                     bool whole) {
  const Unlocked unlocked;
  if (!self.holds(bits, 0, whole || count >= kVectorsForWhole)) return false;
  self.packed().multiply({}, at<const float>(x), count, nullptr, at<float>(y), threads);
  return true;
}

// out: the gradients of x (or 0), d1, d2, d3
void tensor_gradients(const PackedTensors& self, const FactorAddresses& f, Address x, Address g, std::size_t count,
                      const std::array<Address, 4>& out, int threads) {
  const Unlocked unlocked;
  self.gradients(f, at<const float>(x), at<const float>(g), count,
                 {at<float>(out[0]), at<float>(out[1]), at<float>(out[2]), at<float>(out[3])}, threads);
}

// Whether it was packed for the instruction set that is selected now.
bool is_current(const PackedTensors& self) { return self.packed().runs_on(diba::active()); }

// ---- products with 8- and 4-bit rows of tensors, by address: diba/torch/ops/codes.py has checked them

// steps: 0 at 8 bits; bias: 0 for none
void multiply_codes(Address codes, Address steps, Address d1, std::size_t rows, std::size_t columns, int bits,
                    std::size_t group, Address x, std::size_t count, Address bias, Address y, int threads) {
  diba::CodeRows view{};
  view.codes = at<const std::uint8_t>(codes);
  view.steps = at<const std::uint8_t>(steps);
  view.rows = rows;
  view.cols = columns;
  view.bits = bits;
  view.group = group;
  view.code_stride = view.row_bytes();
  view.step_stride = view.groups();
  const Unlocked unlocked;
  diba::multiply_codes(view, at<const float>(d1), at<const float>(x), count, at<const float>(bias), at<float>(y),
                       threads);
}

void bind_packed(py::module_& m) {
  using Factorization = diba::PackedFactorization;
  const auto array = [](const char* name) { return py::arg(name).noconvert(); };
  py::class_<Factorization>(m, "Packed")
      .def(py::init(&make_packed), array("d1"), array("b1"), array("d2"), array("b2"), array("d3"), py::arg("signs"))
      .def_property_readonly("nbytes", &Factorization::bytes)
      .def_property_readonly("isa", [](const Factorization& self) { return std::string(self.bits->kernels().name); })
      .def("multiply", &multiply, array("x"), array("bias").none(true), array("out"), py::arg("threads"))
      .def("try_multiply", &try_multiply, py::arg("x"), py::arg("threads"));
  py::class_<PackedTensors>(m, "PackedTensors")
      .def(py::init(&make_layer), py::arg("b1"), py::arg("b2"), py::arg("rows"), py::arg("inner"), py::arg("cols"),
           py::arg("signs"))
      .def_static("matrix", &make_matrix, py::arg("bits"), py::arg("rows"), py::arg("cols"), py::arg("signs"),
                  py::arg("transposed"))
      .def_property_readonly("current", &is_current)
      .def(
          "holds", [](const PackedTensors& self, Address b1, Address b2) { return self.holds(b1, b2, true); },
          py::arg("b1"), py::arg("b2"))
      .def("multiply", &multiply_tensors)
      .def("multiply_matrix", &multiply_matrix)
      .def("gradients", &tensor_gradients);
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
  bind_packed(m);
  m.def("multiply_codes", &multiply_codes, py::arg("codes"), py::arg("steps"), py::arg("d1"), py::arg("rows"),
        py::arg("columns"), py::arg("bits"), py::arg("group"), py::arg("x"), py::arg("count"), py::arg("bias"),
        py::arg("y"), threads);
  // For another library in the process, which is to use the same store: its address, and what both must have in common.
  m.attr("packed_store") =
      py::make_tuple(reinterpret_cast<std::uintptr_t>(&diba::packed_store()), std::string(diba::build()));
}
