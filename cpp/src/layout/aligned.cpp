#include "layout/aligned.hpp"

#include <algorithm>
#include <iterator>
#include <new>
#include <utility>

namespace diba {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr std::size_t kLeast = std::size_t{1} << 15;  // below it, the allocator keeps pieces itself
constexpr std::size_t kMost = std::size_t{1} << 22;   // above it, there is so much work that pages are cheap
#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t kPieces = 1;
constexpr bool kKeeps = false;  // a piece of the size that was asked for shows accesses past its end
#else
constexpr std::size_t kPieces = 2;  // a product's, and its caller's
constexpr bool kKeeps = true;
#endif

// The pieces of a thread. Nobody else sees them, so there is no lock.
class Kept {
 public:
  Kept() = default;
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;
  ~Kept() {
    for (const Memory& piece : pieces_) ::operator delete(piece.data, kAlignment);
  }

  // The smallest that suffices; null if none does.
  Memory take(std::size_t bytes) {
    Memory* best = nullptr;
    for (Memory& piece : pieces_)
      if (piece.bytes >= bytes && (best == nullptr || piece.bytes < best->bytes)) best = &piece;
    return best == nullptr ? Memory{nullptr, 0} : std::exchange(*best, {nullptr, 0});
  }

  // Keeps it in the place of the smallest, unless it is smaller still; returns what is not kept.
  Memory keep(Memory memory) {
    Memory& least = *std::min_element(std::begin(pieces_), std::end(pieces_),
                                      [](const Memory& a, const Memory& b) { return a.bytes < b.bytes; });
    return memory.bytes > least.bytes ? std::exchange(least, memory) : memory;
  }

 private:
  Memory pieces_[kPieces] = {};
};

thread_local Kept kept;

bool is_kept(std::size_t bytes) { return kKeeps && bytes >= kLeast && bytes <= kMost; }

}  // namespace

Memory take_memory(std::size_t bytes) {
  if (is_kept(bytes))
    if (const Memory found = kept.take(bytes); found.data != nullptr) return found;
  return {::operator new(bytes, kAlignment), bytes};
}

void give_back(Memory memory) {
  if (is_kept(memory.bytes)) memory = kept.keep(memory);
  ::operator delete(memory.data, kAlignment);
}

}  // namespace diba
