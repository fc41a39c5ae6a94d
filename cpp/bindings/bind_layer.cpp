// diba.Layer for diba.torch: tensors come as addresses, which diba/torch/packed.py takes from tensors it has checked.

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "bindings.hpp"
#include "layout/words.hpp"
#include "product/layer.hpp"
#include "runtime/dispatch.hpp"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

using FactorAddresses = std::array<Address, 5>;  // d1, b1, d2, b2, d3

diba::LayerFactors factors(const FactorAddresses& f) {
  return {at<const float>(f[0]), at<const std::uint8_t>(f[1]), at<const float>(f[2]), at<const std::uint8_t>(f[3]),
          at<const float>(f[4])};
}

std::unique_ptr<diba::Layer> make(Address b1, Address b2, std::size_t rows, std::size_t inner, std::size_t cols,
                                  bool signs) {
  const diba::Kernels& kernels = diba::active();
  const Unlocked unlocked;
  return std::make_unique<diba::Layer>(factors({0, b1, 0, b2, 0}), rows, inner, cols, signs, kernels);
}

// From so many vectors on, to look at all the bits costs little beside the product.
constexpr std::size_t kVectorsForWhole = 32;

bool holds(const diba::Layer& self, Address b1, Address b2) {
  return self.holds(at<const std::uint8_t>(b1), at<const std::uint8_t>(b2), true);
}

// False, and nothing else, if the bits are others than those that were packed; `whole`: all of them are looked at.
bool multiply(const diba::Layer& self, const FactorAddresses& f, Address x, std::size_t count, Address bias, Address y,
              int threads, bool whole) {
  const Unlocked unlocked;
  const diba::LayerFactors given = factors(f);
  if (!self.holds(given.b1, given.b2, whole || count >= kVectorsForWhole)) return false;
  self.multiply(given, at<const float>(x), count, at<const float>(bias), at<float>(y), threads);
  return true;
}

// out: the gradients of x (or 0), d1, d2, d3
void gradients(const diba::Layer& self, const FactorAddresses& f, Address x, Address g, std::size_t count,
               const std::array<Address, 4>& out, int threads) {
  const Unlocked unlocked;
  self.gradients(factors(f), at<const float>(x), at<const float>(g), count,
                 {at<float>(out[0]), at<float>(out[1]), at<float>(out[2]), at<float>(out[3])}, threads);
}

// A bit matrix by itself, or transposed, and what tells whether it is still the one.
struct BoundMatrix {
  diba::Fingerprint bytes;
  diba::PreparedMatrix matrix;
};

std::unique_ptr<BoundMatrix> make_matrix(Address bits, std::size_t rows, std::size_t cols, bool signs,
                                         bool transposed) {
  const diba::Kernels& kernels = diba::active();
  const Unlocked unlocked;
  std::vector<std::uint64_t> words = diba::columns_of_bytes(at<const std::uint8_t>(bits), rows, cols);
  if (transposed) words = diba::transposed_words(words, rows, cols);
  const diba::BitView view{words.data(), transposed ? cols : rows, transposed ? rows : cols};
  return std::unique_ptr<BoundMatrix>(
      new BoundMatrix{{at<const std::uint8_t>(bits), rows * ((cols + 7) / 8)}, {view, signs, kernels}});
}

// False, and nothing else, if the bits are others than those that were packed.
bool multiply_matrix(const BoundMatrix& self, Address bits, Address x, std::size_t count, Address y, int threads,
                     bool whole) {
  const Unlocked unlocked;
  if (!self.bytes.matches(at<const std::uint8_t>(bits), whole || count >= kVectorsForWhole)) return false;
  self.matrix.multiply(at<const float>(x), count, at<float>(y), threads);
  return true;
}

// Whether something was packed for the instruction set that is selected now.
bool is_current(const diba::Kernels& kernels) { return &kernels == &diba::active(); }

}  // namespace

void bind_layer(py::module_& m) {
  py::class_<diba::Layer>(m, "Layer")
      .def(py::init(&make), py::arg("b1"), py::arg("b2"), py::arg("rows"), py::arg("inner"), py::arg("cols"),
           py::arg("signs"))
      .def_property_readonly("nbytes", &diba::Layer::bytes)
      .def_property_readonly("current", [](const diba::Layer& self) { return is_current(self.kernels()); })
      .def("holds", &holds, py::arg("b1"), py::arg("b2"))
      .def("multiply", &multiply)
      .def("gradients", &gradients);
  py::class_<BoundMatrix>(m, "PreparedMatrix")
      .def(py::init(&make_matrix), py::arg("bits"), py::arg("rows"), py::arg("cols"), py::arg("signs"),
           py::arg("transposed"))
      .def_property_readonly("current", [](const BoundMatrix& self) { return is_current(self.matrix.kernels()); })
      .def(
          "holds",
          [](const BoundMatrix& self, Address bits) { return self.bytes.matches(at<const std::uint8_t>(bits), true); },
          py::arg("bits"))
      .def("multiply", &multiply_matrix);
}
