// Test data: seeded random bits and floats, and buffers that end at a page nobody may touch.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

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

template <typename T>
bool same_bytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

}  // namespace data
