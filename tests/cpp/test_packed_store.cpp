// Memory of packed bits: equal bits are packed once, other bits are not mistaken for them, and regions that matrices
// share keep each matrix apart from its neighbours and go when the last one does.

#include <atomic>
#include <cstring>
#include <thread>

#include "check.hpp"
#include "data.hpp"
#include "layout/arena.hpp"
#include "product/packed_store.hpp"
#include "runtime/dispatch.hpp"

namespace {

constexpr std::size_t kRows = 70, kInner = 45, kCols = 99;

struct Bits {
  explicit Bits(unsigned seed) : b1(data::bits(kRows, kInner, seed)), b2(data::bits(kInner, kCols, seed + 1)) {}
  diba::BitView left() const { return {b1.data(), kRows, kInner}; }
  diba::BitView right() const { return {b2.data(), kInner, kCols}; }
  std::vector<std::uint64_t> b1, b2;
};

void check_equal_bits_are_packed_once() {
  diba::PackedStore store;
  const Bits bits(1), equal(1), other(7);
  const auto first = store.get(bits.left(), bits.right(), true, diba::active());
  CHECK(store.get(equal.left(), equal.right(), true, diba::active()) == first);
  CHECK(store.get(bits.left(), bits.right(), false, diba::active()) != first);
  CHECK(store.get(other.left(), other.right(), true, diba::active()) != first);
  Bits changed(1);
  changed.b2[3] ^= 1;
  CHECK(store.get(changed.left(), changed.right(), true, diba::active()) != first);
  CHECK(first->holds(equal.left(), equal.right(), true));
  CHECK(!first->holds(equal.left(), equal.right(), false) && !first->holds(changed.left(), changed.right(), true));
}

void check_what_is_gone_is_packed_anew() {
  diba::PackedStore store;
  for (unsigned seed = 0; seed < 300; ++seed) {  // more than the store has room for
    const Bits bits(seed);
    const std::weak_ptr<const diba::Packed> gone = store.get(bits.left(), bits.right(), true, diba::active());
    CHECK(gone.expired());
    CHECK(store.get(bits.left(), bits.right(), true, diba::active())->holds(bits.left(), bits.right(), true));
  }
}

void check_threads() {
  diba::PackedStore store;
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (unsigned i = 0; i < 200; ++i) {
        const Bits bits(i % 5);
        right += store.get(bits.left(), bits.right(), true, diba::active())->holds(bits.left(), bits.right(), true);
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(right == 800);
}

void check_shared_with_another_library() {
  diba::PackedStore theirs;
  diba::PackedStore& own = diba::packed_store();
  diba::use_packed_store(&theirs, "another build");
  CHECK(&diba::packed_store() == &own);
  diba::use_packed_store(&theirs, diba::build());
  CHECK(&diba::packed_store() == &theirs);
  diba::use_packed_store(&own, diba::build());
}

void check_rows() {
  for (const bool signs : {false, true}) {
    const Bits bits(3);
    const diba::Packed packed(bits.left(), bits.right(), signs, diba::active());
    for (std::size_t i = 0; i < kRows; ++i) {
      data::Guarded<float> row(kInner);
      packed.left_row(i, row.data());
      for (std::size_t j = 0; j < kInner; ++j)
        CHECK(row[j] == (data::bit(bits.left(), i, j) ? 1.0F : signs ? -1.0F : 0.0F));
    }
  }
}

// Pieces of all sizes, from one line to more than a region, taken and given back in another order.
void check_arenas() {
  const std::size_t sizes[] = {1, 64, 100, 5000, 200'000, std::size_t{2} << 20, std::size_t{9} << 20};
  std::vector<std::unique_ptr<diba::Arena>> arenas;
  for (std::size_t i = 0; i < 140; ++i) {
    arenas.push_back(std::make_unique<diba::Arena>(sizes[i % 7]));
    const diba::Arena& arena = *arenas.back();
    CHECK(arena.bytes() == sizes[i % 7] && reinterpret_cast<std::uintptr_t>(arena.data()) % 64 == 0);
    std::memset(arena.data(), static_cast<int>(i), arena.bytes());
    if (i >= 70) arenas[(i * 29) % 70].reset();
  }
  for (std::size_t i = 70; i < 140; ++i) {
    const diba::Arena& arena = *arenas[i];
    bool whole = true;
    for (std::size_t e = 0; e < arena.bytes(); e += 61)
      whole = whole && arena.data()[e] == static_cast<std::uint8_t>(i);
    CHECK(whole);
  }
}

}  // namespace

int main() {
  check_equal_bits_are_packed_once();
  check_what_is_gone_is_packed_anew();
  check_threads();
  check_shared_with_another_library();
  check_rows();
  check_arenas();
  return check::done();
}
