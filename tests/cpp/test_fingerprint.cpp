// Changed bytes are detected: by a whole check every change at once, by checks of a part every change in 128 calls and
// other content at the first; equal bytes always match, wherever they lie, and nothing past the end is read.

#include <algorithm>
#include <random>

#include "check.hpp"
#include "data.hpp"
#include "product/fingerprint.hpp"

namespace {

std::vector<std::uint8_t> bytes(std::size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::uint8_t> values(size);
  for (std::uint8_t& value : values) value = static_cast<std::uint8_t>(random());
  return values;
}

// Calls until a check of a part tells, at most `most`.
int calls_until_told(const diba::Fingerprint& print, const std::uint8_t* changed, int most) {
  for (int call = 1; call <= most; ++call)
    if (!print.matches(changed, false)) return call;
  return most + 1;
}

void one_size(std::size_t size) {
  const std::string context = std::to_string(size);
  const std::vector<std::uint8_t> original = bytes(size, 1);
  const diba::Fingerprint print(original.data(), size);
  data::Guarded<std::uint8_t> elsewhere(original);
  CHECK_IN(print.matches(elsewhere.data(), true), context);
  for (int call = 0; call < 200; ++call) CHECK_IN(print.matches(elsewhere.data(), false), context);
  CHECK_IN(!print.matches(bytes(size, 2).data(), false), context);
  std::mt19937 random(3);
  for (int trial = 0; trial < 40; ++trial) {  // the first and the last bit among them
    const std::size_t bit = trial == 0 ? 0 : trial == 1 ? 8 * size - 1 : random() % (8 * size);
    elsewhere[bit / 8] ^= static_cast<std::uint8_t>(1 << bit % 8);
    CHECK_IN(!print.matches(elsewhere.data(), true), context + ", bit " + std::to_string(bit));
    CHECK_IN(calls_until_told(print, elsewhere.data(), 128) <= 128, context + ", bit " + std::to_string(bit));
    elsewhere[bit / 8] ^= static_cast<std::uint8_t>(1 << bit % 8);
  }
}

// Patterns that simple sums miss: words that change places, and highest bits that change in pairs.
void patterns() {
  std::vector<std::uint8_t> values = bytes(2048, 4);
  const diba::Fingerprint print(values.data(), values.size());
  for (std::size_t distance = 8; distance <= 512; distance += 8) {
    std::vector<std::uint8_t> other = values;
    std::swap_ranges(other.begin(), other.begin() + 8, other.begin() + static_cast<std::ptrdiff_t>(distance));
    CHECK_IN(!print.matches(other.data(), true), std::to_string(distance));
    other = values;
    other[7] ^= 0x80;
    other[distance + 7] ^= 0x80;
    CHECK_IN(!print.matches(other.data(), true), std::to_string(distance));
  }
}

}  // namespace

int main() {
  for (const std::size_t size : {1U, 7U, 8U, 63U, 64U, 65U, 2047U, 2048U, 2049U, 8192U, 8193U, 100'000U, 600'001U})
    one_size(size);
  patterns();
  return check::done();
}
