// What the binding files share: arrays, the last line of checks, and the way out of the GIL.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "layout/bit_matrix.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"

using Floats = pybind11::array_t<float, pybind11::array::c_style>;
using Words = pybind11::array_t<std::uint64_t, pybind11::array::c_style>;

inline void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

inline std::size_t extent(const pybind11::array& array, int axis) {
  return static_cast<std::size_t>(array.shape(axis));
}

// `words` as a matrix of bits with `cols` columns.
inline diba::BitView bit_view(const Words& words, std::size_t cols) {
  require(words.ndim() == 2 && extent(words, 1) == diba::words_for(cols),
          "words must have shape (rows, ceil(cols / 64))");
  return {words.data(), extent(words, 0), cols};
}

// Without the GIL for as long as it lives; every call of the core is inside one.
//
// A daemon thread that comes back once the interpreter is finalizing is not let in again. Up to Python 3.13 it is ended
// by unwinding its stack, through destructors that may not be left that way and need the GIL: the process would abort.
// Here such a thread waits for the end of the process, as it does in Python 3.14.
class Unlocked {
 public:
  Unlocked() {
    diba::active();  // chosen under the GIL: a child forked by another thread never finds this half done
    state_ = PyEval_SaveThread();
  }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() noexcept(false) { return_to(state_); }

 private:
  struct Held {
    bool inside = false;
    ~Held() {
      if (!inside) diba::hold_thread();
    }
  };

  // A frame of its own, whose cleanup comes before that of all the others. It must not be noexcept, nor inlined into
  // what is: a compiler may leave out the cleanup where nothing is supposed to be thrown.
  PYBIND11_NOINLINE static void return_to(PyThreadState* state) noexcept(false) {
    Held held;
    PyEval_RestoreThread(state);
    held.inside = true;
  }

  PyThreadState* state_;
};

// Adds diba.Prepared and what goes with it to the module.
void bind_prepared(pybind11::module_& m);

// Adds diba.Layer and diba.PreparedMatrix.
void bind_layer(pybind11::module_& m);
