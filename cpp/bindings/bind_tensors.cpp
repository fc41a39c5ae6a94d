// cpp/src/product, with tensors: arrays come by address, from diba/torch/ops, which has checked them.

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "product/code_rows.hpp"
#include "product/fingerprint.hpp"
#include "product/packed_store.hpp"

namespace py = pybind11;

namespace {

// ---- fast products; diba/torch/ops/packed.py

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

// starts, columns, values of a sparse matrix that the caller has checked, and the bytes of a column; zeros: none.
using SparseAddresses = std::array<Address, 4>;

// y = alpha * (S x) + E x + bias for one sign matrix S; alpha has `scales` entries, 1 or one for each row.
bool multiply_binarized(const PackedTensors& self, Address signs, Address alpha, std::size_t scales,
                        const SparseAddresses& sparse, Address x, std::size_t count, Address bias, Address y,
                        int threads, bool whole) {
  const diba::Packed& packed = self.packed();
  require(scales == 1 || scales == packed.rows(), "alpha must have one entry, or one for each row");
  const Unlocked unlocked;
  if (!self.holds(signs, 0, whole || count >= kVectorsForWhole)) return false;
  const float* const from = at<const float>(alpha);
  diba::Diagonals d;
  d.d1 = scales == 1 ? std::vector<float>(packed.rows(), *from) : std::vector<float>(from, from + scales);
  const diba::SparseRows plus{at<const std::uint32_t>(sparse[0]),
                              at<const void>(sparse[1]),
                              at<const float>(sparse[2]),
                              packed.rows(),
                              packed.cols(),
                              sparse[3]};
  packed.multiply(d, at<const float>(x), count, at<const float>(bias), at<float>(y), threads,
                  sparse[0] == 0 ? nullptr : &plus);
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

// ---- products with rows of 8 and 4 bits; diba/torch/ops/codes.py

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

}  // namespace

void bind_tensors(py::module_& m) {
  const py::arg threads("threads");
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
      .def("multiply_binarized", &multiply_binarized)
      .def("gradients", &tensor_gradients);
  m.def("multiply_codes", &multiply_codes, py::arg("codes"), py::arg("steps"), py::arg("d1"), py::arg("rows"),
        py::arg("columns"), py::arg("bits"), py::arg("group"), py::arg("x"), py::arg("count"), py::arg("bias"),
        py::arg("y"), threads);
  // For another library in the process, which is to use the same store: its address, and what both must have in common.
  m.attr("packed_store") =
      py::make_tuple(reinterpret_cast<std::uintptr_t>(&diba::packed_store()), std::string(diba::build()));
}
