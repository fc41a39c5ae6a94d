// Test data: seeded random bits and floats, and buffers that end at a protected page.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <random>
#include <vector>

#include "layout/bit_matrix.hpp"

namespace data {

// An array whose last element ends at a protected page: one read or write past it is a crash.
template <typename T>
class Guarded {
 public:
  explicit Guarded(std::size_t count) : count_(count) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t room = (count * sizeof(T) + page - 1) / page * page;
    size_ = room + page;
    base_ = static_cast<char*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + room, page, PROT_NONE) != 0) throw std::bad_alloc();
    data_ = reinterpret_cast<T*>(base_ + room - count * sizeof(T));
  }
  explicit Guarded(const std::vector<T>& values) : Guarded(values.size()) {
    if (!values.empty()) std::memcpy(data_, values.data(), values.size() * sizeof(T));
  }
  ~Guarded() { munmap(base_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return count_; }
  T& operator[](std::size_t i) { return data_[i]; }
  std::vector<T> copy() const { return std::vector<T>(data_, data_ + count_); }

 private:
  std::size_t count_;
  std::size_t size_ = 0;
  char* base_ = nullptr;
  T* data_ = nullptr;
};

inline std::vector<float> normals(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

inline std::vector<float> magnitudes(std::size_t count, unsigned seed) {
  std::vector<float> values = normals(count, seed);
  for (float& value : values) value = std::fabs(value);
  return values;
}

// 1 or -1
inline std::vector<float> signs(std::size_t count, unsigned seed) {
  std::vector<float> values = normals(count, seed);
  for (float& value : values) value = value > 0 ? 1.0F : -1.0F;
  return values;
}

// Small whole numbers: float32 sums of them are exact in any order.
inline std::vector<float> integers(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> pick(-100, 100);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(pick(random));
  return values;
}

// rows x cols random bits in the storage layout. Density 0, 1/2 or 1.
enum class Fill { kZeros, kRandom, kOnes };

inline std::vector<std::uint64_t> bits(std::size_t rows, std::size_t cols, unsigned seed, Fill fill = Fill::kRandom) {
  std::mt19937_64 random(seed);
  const std::size_t row_words = diba::words_for(cols);
  std::vector<std::uint64_t> words(rows * row_words);
  for (std::size_t w = 0; w < words.size(); ++w) {
    words[w] = fill == Fill::kRandom ? random() : (fill == Fill::kOnes ? ~std::uint64_t{0} : 0);
    if (w % row_words == row_words - 1) words[w] &= diba::tail_mask(cols);
  }
  return words;
}

// The layout once more, a bit at a time.
inline bool bit(diba::BitView bits, std::size_t i, std::size_t j) {
  return (bits.row(i)[j / diba::kWordBits] >> (j % diba::kWordBits)) & 1U;
}

inline double wide(float x) { return static_cast<double>(x); }
inline std::vector<double> widened(const std::vector<float>& x) { return {x.begin(), x.end()}; }

// max |x|
inline double largest(const std::vector<double>& x) {
  double size = 0.0;
  for (const double value : x) size = std::max(size, std::fabs(value));
  return size;
}

// X^T X / rows (k, k) for a random X (rows, k), whose columns have a length of about the square root of rows.
inline std::vector<float> gram(std::size_t rows, std::size_t k, unsigned seed) {
  const std::vector<float> x = normals(rows * k, seed);
  std::vector<float> h(k * k);
  for (std::size_t i = 0; i < k; ++i)
    for (std::size_t j = 0; j <= i; ++j) {
      double sum = 0.0;
      for (std::size_t q = 0; q < rows; ++q) sum += wide(x[q * k + i]) * wide(x[q * k + j]);
      h[i * k + j] = h[j * k + i] = static_cast<float>(sum / static_cast<double>(rows));
    }
  return h;
}

template <typename T>
bool same_bytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

}  // namespace data
