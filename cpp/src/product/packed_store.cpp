#include "product/packed_store.hpp"

#include <iterator>
#include <string>

#include "diba/version.hpp"

namespace diba {
namespace {

// Mixes in one word; every bit of the state depends on every bit before it.
std::uint64_t mixed(std::uint64_t state, std::uint64_t word) {
  state = (state ^ word) * 0x9E3779B97F4A7C15U;
  return state ^ state >> 32;
}

std::uint64_t mixed(std::uint64_t state, BitView bits) {
  state = mixed(mixed(state, bits.rows), bits.cols);
  for (std::size_t w = 0; w < bits.rows * words_for(bits.cols); ++w) state = mixed(state, bits.words[w]);
  return state;
}

// Never destroyed: a session may outlive everything else.
std::atomic<PackedStore*> used{new PackedStore};

const std::string build_text = std::string(DIBA_VERSION_TEXT " " __VERSION__ " ") + std::to_string(sizeof(Packed)) +
                               " " + std::to_string(sizeof(PackedStore)) + " " + std::to_string(sizeof(Kernels));

}  // namespace

bool PackedStore::enter() {
  constexpr int kAttempts = 1000;  // who is inside only looks up a number
  for (int attempt = 0; attempt < kAttempts; ++attempt)
    if (!taken_.load(std::memory_order_relaxed) && !taken_.exchange(true, std::memory_order_acquire)) return true;
  return false;
}

std::shared_ptr<const Packed> PackedStore::find(Key key) {
  if (!enter()) return nullptr;
  const auto found = packed_.find(key);
  std::shared_ptr<const Packed> packed = found == packed_.end() ? nullptr : found->second.lock();
  leave();
  return packed;
}

void PackedStore::keep(Key key, const std::shared_ptr<const Packed>& packed) {
  if (!enter()) return;
  struct Leave {
    PackedStore& store;
    ~Leave() { store.leave(); }
  } const leave{*this};
  if (packed_.size() >= room_) {
    for (auto entry = packed_.begin(); entry != packed_.end();)
      entry = entry->second.expired() ? packed_.erase(entry) : std::next(entry);
    room_ = 2 * packed_.size() + 64;
  }
  packed_[key] = packed;
}

std::shared_ptr<const Packed> PackedStore::get(BitView left, BitView right, bool signs, const Kernels& kernels) {
  std::uint64_t key = mixed(mixed(std::uint64_t{signs}, left), right);
  for (const char* c = kernels.name; *c != '\0'; ++c) key = mixed(key, static_cast<unsigned char>(*c));
  if (std::shared_ptr<const Packed> packed = find(key); packed != nullptr && packed->holds(left, right, signs))
    return packed;
  auto packed = std::make_shared<const Packed>(left, right, signs, kernels);
  keep(key, packed);
  return packed;
}

PackedStore& packed_store() { return *used.load(std::memory_order_acquire); }

const char* build() { return build_text.c_str(); }

void use_packed_store(PackedStore* store, const char* theirs) {
  if (build_text == theirs) used.store(store, std::memory_order_release);
}

}  // namespace diba
