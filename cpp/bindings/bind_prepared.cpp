// diba.Prepared for Python, and the call that a product of microseconds goes through.

#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "product/prepared.hpp"
#include "runtime/dispatch.hpp"

namespace py = pybind11;

namespace {

std::unique_ptr<diba::Prepared> make(const Floats& d1, const Words& b1, const Floats& d2, const Words& b2,
                                     const Floats& d3, bool signs) {
  require(d1.ndim() == 1 && d2.ndim() == 1 && d3.ndim() == 1, "diagonals must be one-dimensional");
  const diba::BitView left = bit_view(b1, extent(d2, 0));
  const diba::BitView right = bit_view(b2, extent(d3, 0));
  const diba::Factors factors{d1.data(), left, d2.data(), right, d3.data(), signs};
  require(factors.b1.rows == extent(d1, 0) && factors.b2.rows == extent(d2, 0), "factors must fit together");
  const diba::Kernels& kernels = diba::active();
  const Unlocked unlocked;
  return std::make_unique<diba::Prepared>(factors, kernels);
}

void multiply(const diba::Prepared& self, const Floats& x, const std::optional<Floats>& bias, Floats& out,
              int threads) {
  require(x.ndim() == 2 && extent(x, 1) == self.cols(), "x must have shape (count, cols)");
  require(out.ndim() == 2 && extent(out, 0) == extent(x, 0) && extent(out, 1) == self.rows(),
          "out must have shape (count, rows)");
  if (bias) require(bias->ndim() == 1 && extent(*bias, 0) == self.rows(), "bias must have shape (rows,)");
  const float* from = x.data();
  const float* shift = bias ? bias->data() : nullptr;
  float* to = out.mutable_data();
  const std::size_t count = extent(x, 0);
  const Unlocked unlocked;
  self.multiply(from, count, shift, to, threads);
}

std::vector<py::ssize_t> shape_of(const Floats& rows, py::ssize_t last) {
  std::vector<py::ssize_t> shape(rows.shape(), rows.shape() + rows.ndim());
  shape.back() = last;
  return shape;
}

// M x for each vector along the last axis of a float32 array that can be read as it is; None for everything else,
// which Python then looks at. Small products are done by the caller's thread.
py::object try_multiply(const diba::Prepared& self, const py::handle& x, int threads) {
  if (!Floats::check_(x) || &self.kernels() != &diba::active()) return py::none();
  const auto rows = py::reinterpret_borrow<Floats>(x);
  const py::ssize_t axes = rows.ndim();
  if (axes == 0 || extent(rows, static_cast<int>(axes) - 1) != self.cols()) return py::none();
  if (reinterpret_cast<std::uintptr_t>(rows.data()) % alignof(float) != 0) return py::none();
  const auto length = static_cast<py::ssize_t>(self.rows());
  Floats out = axes == 1 ? Floats(length) : Floats(shape_of(rows, length));
  const float* from = rows.data();
  const std::size_t count = static_cast<std::size_t>(rows.size()) / self.cols();
  float* to = out.mutable_data();
  {
    const Unlocked unlocked;
    self.multiply(from, count, nullptr, to, threads);
  }
  return out;
}

}  // namespace

void bind_prepared(py::module_& m) {
  const py::arg threads("threads");
  const auto x = py::arg("x").noconvert();
  py::class_<diba::Prepared>(m, "Prepared")
      .def(py::init(&make), py::arg("d1").noconvert(), py::arg("b1").noconvert(), py::arg("d2").noconvert(),
           py::arg("b2").noconvert(), py::arg("d3").noconvert(), py::arg("signs"))
      .def_property_readonly("nbytes", &diba::Prepared::bytes)
      .def_property_readonly("isa", [](const diba::Prepared& self) { return std::string(self.kernels().name); })
      .def("multiply", &multiply, x, py::arg("bias").noconvert().none(true), py::arg("out").noconvert(), threads)
      .def("try_multiply", &try_multiply, py::arg("x"), threads);
}
