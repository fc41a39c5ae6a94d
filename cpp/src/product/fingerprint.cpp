#include "product/fingerprint.hpp"

#include <algorithm>
#include <cstring>

namespace diba {
namespace {

constexpr std::size_t kBlock = 2048;                   // bytes
constexpr std::size_t kSmall = 4;                      // up to so many blocks, all of them are always read
constexpr std::size_t kCalls = 128;                    // after so many calls every block has been read
constexpr std::size_t kSamples = 4;                    // words
constexpr std::size_t kLanes = 8;                      // hashes side by side, as a multiplication takes some cycles
constexpr std::uint64_t kFactor = 0x9E3779B97F4A7C15;  // odd: a step loses nothing

std::uint64_t word_at(const std::uint8_t* bytes) {
  std::uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

// One to one in `word` for every hash, so that the change of one word is always detected. Rotated first: otherwise the
// highest bit would change no other.
std::uint64_t step(std::uint64_t hash, std::uint64_t word) {
  hash ^= word;
  return (hash << 29 | hash >> 35) * kFactor;
}

std::uint64_t hash_of(const std::uint8_t* bytes, std::size_t size) {
  std::uint64_t lanes[kLanes] = {1, 2, 3, 4, 5, 6, 7, 8};
  std::size_t at = 0;
  for (; at + 8 * kLanes <= size; at += 8 * kLanes)
    for (std::size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = step(lanes[lane], word_at(bytes + at + 8 * lane));
  std::uint64_t hash = size;
  for (; at < size; at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes + at, std::min<std::size_t>(8, size - at));
    hash = step(hash, word);
  }
  for (const std::uint64_t lane : lanes) hash = step(hash, lane);
  return hash;
}

std::size_t blocks_in(std::size_t size) { return (size + kBlock - 1) / kBlock; }

std::size_t sample_at(std::size_t i, std::size_t size) { return (size - 8) / (kSamples - 1) * i; }

}  // namespace

Fingerprint::Fingerprint(const std::uint8_t* bytes, std::size_t size) : size_(size) {
  for (std::size_t b = 0; b < blocks_in(size); ++b)
    blocks_.push_back(hash_of(bytes + b * kBlock, std::min(kBlock, size - b * kBlock)));
  if (blocks_.size() > kSmall)
    for (std::size_t i = 0; i < kSamples; ++i) samples_.push_back(word_at(bytes + sample_at(i, size)));
}

bool Fingerprint::matches(const std::uint8_t* bytes, bool whole) const {
  const std::size_t all = blocks_.size();
  if (whole || samples_.empty()) return blocks_match(bytes, 0, all);
  for (std::size_t i = 0; i < kSamples; ++i)
    if (word_at(bytes + sample_at(i, size_)) != samples_[i]) return false;
  const std::size_t some = (all + kCalls - 1) / kCalls;
  const std::size_t first = next_.fetch_add(some, std::memory_order_relaxed) % all;
  const std::size_t before_end = std::min(some, all - first);
  return blocks_match(bytes, first, before_end) && blocks_match(bytes, 0, some - before_end);
}

bool Fingerprint::blocks_match(const std::uint8_t* bytes, std::size_t first, std::size_t count) const {
  for (std::size_t b = first; b < first + count; ++b)
    if (hash_of(bytes + b * kBlock, std::min(kBlock, size_ - b * kBlock)) != blocks_[b]) return false;
  return true;
}

}  // namespace diba
