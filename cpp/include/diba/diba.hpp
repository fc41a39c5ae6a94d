// diba without Python: load a saved factorization and multiply by it. The whole public interface of libdiba.
//
// A factorization stands for a real matrix M of rows x cols,
//
//   M = D1 B1 D2 B2 D3,    D1, D2, D3 diagonal,    B1 (rows, k) and B2 (k, cols) of single bits,
//
// the bits read as 0/1 or as -1/+1. It multiplies without ever forming M:
//
//   const auto f = diba::Factorization::load("layer.diba");
//   std::vector<float> x(f.cols()), y(f.rows());
//   f.multiply(x.data(), y.data());  // y = M x
//
// Files come from Python, `diba.solve(A).save("layer.diba")`. docs/cpp.md describes how to build and to link.
#pragma once

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>

#include "diba/version.hpp"

#ifndef DIBA_API
#if defined(__GNUC__) && !defined(_WIN32)
#define DIBA_API __attribute__((visibility("default")))
#else
#define DIBA_API
#endif
#endif

namespace diba {

// The version of the library that runs, "major.minor.patch"; DIBA_VERSION_MAJOR, _MINOR, _PATCH are this header's.
DIBA_API const char* version() noexcept;

// The instruction set that the products run on, such as "avx512" or "scalar": the best one that the processor has, or
// the one that the environment variable DIBA_ISA names. Results are the same bytes on every one.
// Throws std::invalid_argument, with the valid names, when DIBA_ISA is none of them. So do the products.
DIBA_API std::string isa();

// A file is not a readable diba file. what() names the file, the tensor or metadata key, what was found and what was
// expected.
class DIBA_API FormatError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  FormatError(const FormatError&) noexcept;
  ~FormatError() override;
};

enum class Precision {
  // Activations rounded to tables of small integers, exact sums: the fastest. docs/cpp.md states the error.
  kFast,
  // Sums of float32 throughout, |y - exact| <= n eps sum |terms| in each of the two products.
  kExact,
};

// How to multiply; the defaults are what most callers want.
struct Options {
  Precision precision = Precision::kFast;
  const float* bias = nullptr;  // (rows), added to every result
  int threads = 1;              // at most so many, the caller's among them; never changes a result
};

// The factors of a matrix, immutable. Moving is cheap; a moved-from object may only be assigned to or destroyed.
// Any number of threads may call const members of one object at once.
class DIBA_API Factorization {
 public:
  // Reads a file and verifies everything that can be verified: sizes, checksums, every number. No claim of the header
  // is believed before the file's true size has confirmed it, so files from strangers are safe to load. Throws
  // FormatError; std::system_error if the file cannot be opened or read.
  static Factorization load(const std::string& path);

  // The same for the bytes of a file in memory, at any alignment; they are copied. `name` stands for the file in
  // messages. Throws FormatError.
  static Factorization parse(const void* data, std::size_t size, const std::string& name = "memory");

  Factorization(Factorization&&) noexcept;
  Factorization& operator=(Factorization&&) noexcept;
  ~Factorization();

  std::size_t rows() const noexcept;
  std::size_t cols() const noexcept;
  std::size_t k() const noexcept;           // columns of B1, rows of B2
  bool signs() const noexcept;              // bits are -1/+1 instead of 0/1
  int diagonal_bits() const noexcept;       // bits of one entry of a diagonal in the file: 16 or 32
  double bits_per_weight() const noexcept;  // [k (rows + cols) + diagonal_bits (rows + k + cols)] / (rows cols)
  std::size_t bytes() const noexcept;       // memory held, with what prepare() made

  // Packs the bits for the fast products. Otherwise the first fast product does so, and takes longer; threads that call
  // it at once may each pack them, none waits for another.
  void prepare() const;

  // y = M x + bias. x (cols), y (rows), which must not overlap. Where x and bias are finite, y is too: what is beyond
  // float's range is its largest number. x must be finite for Precision::kFast to mean anything: otherwise all of y is
  // NaN.
  void multiply(const float* x, float* y, const Options& options = {}) const;

  // Every row x of X (count, cols) becomes a row M x + bias of Y (count, rows); both row-major, without gaps. The rows
  // of Y have the same bytes as `count` products of single vectors.
  void multiply(const float* x, std::size_t count, float* y, const Options& options = {}) const;

 private:
  class Implementation;
  explicit Factorization(std::unique_ptr<const Implementation> implementation) noexcept;
  std::unique_ptr<const Implementation> implementation_;
};

}  // namespace diba
