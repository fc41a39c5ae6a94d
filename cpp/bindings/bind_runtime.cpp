// cpp/src/runtime: instruction sets, settings that depend on the machine, threads when the interpreter ends.

#include <pybind11/stl.h>

#include <exception>
#include <string>
#include <tuple>
#include <utility>

#include "bindings.hpp"
#include "runtime/bandwidth.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"
#include "runtime/tuning.hpp"

namespace py = pybind11;

namespace {

double read_seconds(const Words& words) {
  const std::uint64_t* data = words.data();
  const auto count = static_cast<std::size_t>(words.size());
  const Unlocked unlocked;
  return diba::read_seconds(data, count);
}

std::tuple<std::size_t, std::size_t, std::size_t> tuning() {
  const diba::Tuning values = diba::tuning();
  return {values.table_bytes, values.bits_per_thread, values.fetch_bytes};
}

void set_tuning(std::size_t table_bytes, std::size_t bits_per_thread, std::size_t fetch_bytes) {
  diba::set_tuning({table_bytes, bits_per_thread, fetch_bytes});
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

void bind_runtime(py::module_& m) {
  m.def("isa", [] { return std::string(diba::active().name); });
  m.def("supported_isas", &diba::supported);
  m.def("select_isa", &diba::select, py::arg("name"));
  m.def("tuning", &tuning);
  m.def("set_tuning", &set_tuning, py::arg("table_bytes"), py::arg("bits_per_thread"), py::arg("fetch_bytes"));
  m.def("read_seconds", &read_seconds, py::arg("words").noconvert());
  m.def("hold_threads_at_exit", &hold_threads_at_exit, py::arg("main_thread"));
}
