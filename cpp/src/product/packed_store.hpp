// Packed bits by what they are: whoever packs bits that are packed already gets the copy that is there.
//
// So sessions of one model, copies of a layer and a layer that is exported while it lives share their memory.
// Diagonals, which training changes, are not part of it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "product/packed.hpp"

namespace diba {

class PackedStore {
 public:
  // The bits of D1 B1 D2 B2 D3. Any thread may call it; one that finds others at it packs for itself.
  std::shared_ptr<const Packed> get(BitView left, BitView right, bool signs, const Kernels& kernels);

 private:
  using Key = std::uint64_t;
  bool enter();
  void leave() { taken_.store(false, std::memory_order_release); }
  std::shared_ptr<const Packed> find(Key key);
  void keep(Key key, const std::shared_ptr<const Packed>& packed);

  std::atomic<bool> taken_{false};
  std::map<Key, std::weak_ptr<const Packed>> packed_;
  std::size_t room_ = 64;  // entries, before those of bits that are gone are looked for
};

// The store of this library, or of another library in the process that use_packed_store named: diba is in a process
// twice where onnxruntime runs beside the Python package.
PackedStore& packed_store();

// `store` is packed_store() of a library whose build() is the same, else nothing happens. It is used from now on.
void use_packed_store(PackedStore* store, const char* build);

// A factorization whose diagonals do not change, or diag(alpha) S + E with one sign matrix S and a sparse E.
struct PackedFactorization {
  PackedFactorization(BitView left, BitView right, bool signs, const Scales& scales, const Kernels& kernels)
      : bits(packed_store().get(left, right, signs, kernels)), diagonals(bits->diagonals(scales, left)) {}
  // alpha (rows); E is not owned.
  PackedFactorization(std::shared_ptr<const Packed> signs, std::vector<float> alpha, const SparseRows& sparse)
      : bits(std::move(signs)), diagonals{std::move(alpha), {}, {}, {}, {}}, plus(sparse) {}

  std::size_t bytes() const { return bits->bytes() + diagonals.bytes(); }
  void multiply(const float* x, std::size_t count, const float* bias, float* y, const Executor& executor) const {
    bits->multiply(diagonals, x, count, bias, y, executor, plus ? &*plus : nullptr);
  }

  const std::shared_ptr<const Packed> bits;
  const Diagonals diagonals;
  const std::optional<SparseRows> plus;
};

// What two libraries must have in common to share objects: version, compiler, sizes.
const char* build();

}  // namespace diba
