// diba.Layer for diba.torch: tensors come as addresses, which diba/torch/packed.py takes from tensors it has checked.

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "bindings.hpp"
#include "diba/dispatch.hpp"
#include "diba/layer.hpp"
#include "diba/words.hpp"

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
  const py::gil_scoped_release unlocked;
  return std::make_unique<diba::Layer>(factors({0, b1, 0, b2, 0}), rows, inner, cols, signs, kernels);
}

void multiply(const diba::Layer& self, const FactorAddresses& f, Address x, std::size_t count, Address bias, Address y,
              int threads) {
  const py::gil_scoped_release unlocked;
  self.multiply(factors(f), at<const float>(x), count, at<const float>(bias), at<float>(y), threads);
}

// out: the gradients of x (or 0), d1, d2, d3
void gradients(const diba::Layer& self, const FactorAddresses& f, Address x, Address g, std::size_t count,
               const std::array<Address, 4>& out, int threads) {
  const py::gil_scoped_release unlocked;
  self.gradients(factors(f), at<const float>(x), at<const float>(g), count,
                 {at<float>(out[0]), at<float>(out[1]), at<float>(out[2]), at<float>(out[3])}, threads);
}

// A bit matrix by itself, or transposed.
std::unique_ptr<diba::PreparedMatrix> make_matrix(Address bits, std::size_t rows, std::size_t cols, bool signs,
                                                  bool transposed) {
  const diba::Kernels& kernels = diba::active();
  const py::gil_scoped_release unlocked;
  std::vector<std::uint64_t> words = diba::words_of_bytes(at<const std::uint8_t>(bits), rows, cols);
  if (transposed) words = diba::transposed_words(words, rows, cols);
  const diba::BitView view{words.data(), transposed ? cols : rows, transposed ? rows : cols};
  return std::make_unique<diba::PreparedMatrix>(view, signs, kernels);
}

void multiply_matrix(const diba::PreparedMatrix& self, Address x, std::size_t count, Address y, int threads) {
  const py::gil_scoped_release unlocked;
  self.multiply(at<const float>(x), count, at<float>(y), threads);
}

template <typename T>
// Whether it was packed for the instruction set that is selected now.
bool is_current(const T& self) {
  return &self.kernels() == &diba::active();
}

}  // namespace

void bind_layer(py::module_& m) {
  py::class_<diba::Layer>(m, "Layer")
      .def(py::init(&make), py::arg("b1"), py::arg("b2"), py::arg("rows"), py::arg("inner"), py::arg("cols"),
           py::arg("signs"))
      .def_property_readonly("nbytes", &diba::Layer::bytes)
      .def_property_readonly("current", &is_current<diba::Layer>)
      .def("multiply", &multiply)
      .def("gradients", &gradients);
  py::class_<diba::PreparedMatrix>(m, "PreparedMatrix")
      .def(py::init(&make_matrix), py::arg("bits"), py::arg("rows"), py::arg("cols"), py::arg("signs"),
           py::arg("transposed"))
      .def_property_readonly("current", &is_current<diba::PreparedMatrix>)
      .def("multiply", &multiply_matrix);
}
