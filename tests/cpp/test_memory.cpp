// Memory that threads keep: aligned, of the size that was asked for, never handed out twice at a time.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "check.hpp"
#include "layout/aligned.hpp"

namespace {

// Takes and gives back pieces of many sizes in any order; each is filled with a number of its own while it is held.
// Counts what is not as it should be.
void take_turns(unsigned seed, int& faults) {
  std::vector<diba::Memory> held;
  std::vector<std::uint8_t> marks;
  std::uint64_t state = seed;
  const auto next = [&] { return state = state * 6364136223846793005U + 1442695040888963407U, state >> 33; };
  for (int turn = 0; turn < 200; ++turn) {
    if (held.size() < 5 && next() % 3 != 0) {
      const std::size_t bytes = std::size_t{1} << (next() % 24);
      held.push_back(diba::take_memory(bytes));
      marks.push_back(static_cast<std::uint8_t>(turn));
      faults += held.back().bytes < bytes || reinterpret_cast<std::uintptr_t>(held.back().data) % 64 != 0;
      std::memset(held.back().data, marks.back(), held.back().bytes);
    } else if (!held.empty()) {
      const std::size_t i = next() % held.size();
      const auto* const data = static_cast<const std::uint8_t*>(held[i].data);
      const std::uint8_t mark = marks[i];
      faults += !std::all_of(data, data + held[i].bytes, [=](std::uint8_t byte) { return byte == mark; });
      diba::give_back(held[i]);
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(i));
      marks.erase(marks.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  for (const diba::Memory& memory : held) diba::give_back(memory);
}

}  // namespace

int main() {
  std::vector<int> faults(5);
  take_turns(1, faults[0]);
  std::vector<std::thread> threads;
  for (unsigned t = 1; t < faults.size(); ++t) threads.emplace_back(take_turns, t + 1, std::ref(faults[t]));
  for (std::thread& thread : threads) thread.join();
  CHECK(faults == std::vector<int>(5));

  const diba::Memory first = diba::take_memory(1 << 20);  // a piece goes from thread to thread
  std::thread([&] { diba::give_back(first); }).join();
  const diba::Aligned<float> none(0);
  CHECK(none.data() != nullptr);
  return check::done();
}
