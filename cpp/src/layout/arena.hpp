// Memory for packed bits, which are read again and again from one end to the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace diba {

// Uninitialised bytes at a 64-byte boundary. Matrices that are packed one after another lie beside one another in large
// pages: a model is larger than the caches, and with small pages a tenth to a fifth of its time is spent on addresses.
// A region of several matrices is given back when the last of them is gone.
class Arena {
 public:
  explicit Arena(std::size_t bytes);
  std::uint8_t* data() const { return memory_.get(); }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_;
  std::shared_ptr<std::uint8_t> memory_;
};

}  // namespace diba
