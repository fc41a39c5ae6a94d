// Tells whether bytes that the caller owns are still those that a packed copy was made of.
//
// A whole check reads all of them, which takes about as long as one product with one vector. The check for single
// vectors reads, above 8 KiB, only 4 words spread over everything, which detect other content at once, and a 128th of
// everything, at least 2 KiB, in turn, which detects a change of a single bit after at most 128 calls.
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
