#include "runtime/tuning.hpp"

#include <atomic>

namespace diba {
namespace {

// From diba.autotune() on two virtual cores of a Xeon with 2 MiB of second-level cache each.
std::atomic<std::size_t> table_bytes{512 << 10};
std::atomic<std::size_t> bits_per_thread{1 << 22};
// From benchmarks/products/streaming.py on one core of an EPYC (Zen 4), with its own kernels and with those of AVX2.
std::atomic<std::size_t> fetch_bytes{6 << 10};

}  // namespace

Tuning tuning() {
  return {table_bytes.load(std::memory_order_relaxed), bits_per_thread.load(std::memory_order_relaxed),
          fetch_bytes.load(std::memory_order_relaxed)};
}

void set_tuning(const Tuning& values) {
  table_bytes.store(values.table_bytes, std::memory_order_relaxed);
  bits_per_thread.store(values.bits_per_thread, std::memory_order_relaxed);
  fetch_bytes.store(values.fetch_bytes, std::memory_order_relaxed);
}

}  // namespace diba
