#include "runtime/bandwidth.hpp"

#include <chrono>

namespace diba {
namespace {

// All words combined by exclusive or, which costs little compared with reading them: two halves side by side, eight
// words of each at a time, so that baseline code reads as fast as the widest loads of one stream.
std::uint64_t combine(const std::uint64_t* words, std::size_t count) {
  constexpr std::size_t kChains = 8;
  const std::size_t half = count / 2 / kChains * kChains;
  std::uint64_t chains[kChains] = {};
  for (std::size_t w = 0; w < half; w += kChains) {
    for (std::size_t c = 0; c < kChains; ++c) chains[c] ^= words[w + c];
    for (std::size_t c = 0; c < kChains; ++c) chains[c] ^= words[half + w + c];
  }
  std::uint64_t sum = 0;
  for (const std::uint64_t chain : chains) sum ^= chain;
  for (std::size_t w = 2 * half; w < count; ++w) sum ^= words[w];
  return sum;
}

}  // namespace

double read_seconds(const std::uint64_t* words, std::size_t count) {
  const auto start = std::chrono::steady_clock::now();
  volatile std::uint64_t sink = combine(words, count);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  static_cast<void>(sink);
  return seconds.count();
}

}  // namespace diba
