// Whether bytes that somebody else owns are still those that a packed copy was made of.
//
// A whole check reads all of them, which takes about as long as one product with one vector. For single vectors there
// is a check of a part: above 8 KiB it reads 4 words spread over everything, which tell other content from the first
// call on, and a 128th of everything, at least 2 KiB, in turn, which tells the change of a single bit after 128 calls
// at most.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace diba {

class Fingerprint {
 public:
  Fingerprint(const std::uint8_t* bytes, std::size_t size);

  bool matches(const std::uint8_t* bytes, bool whole) const;

 private:
  bool blocks_match(const std::uint8_t* bytes, std::size_t first, std::size_t count) const;

  std::size_t size_;
  std::vector<std::uint64_t> blocks_;   // hashes of all blocks
  std::vector<std::uint64_t> samples_;  // words, spread evenly
  mutable std::atomic<std::size_t> next_{0};
};

}  // namespace diba
