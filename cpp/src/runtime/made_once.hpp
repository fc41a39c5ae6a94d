// Values that threads make and share without waiting for a lock: a child made by fork could find a lock taken by a
// thread that it does not have, and would wait for ever.
#pragma once

#include <atomic>
#include <memory>
#include <utility>

namespace diba {

// A value made on first use. Threads that find none each make one; all use the one that was stored first.
template <class T>
class MadeOnce {
 public:
  MadeOnce() = default;
  MadeOnce(const MadeOnce&) = delete;
  MadeOnce& operator=(const MadeOnce&) = delete;
  ~MadeOnce() { delete made_.load(std::memory_order_relaxed); }

  // Null if there is none yet.
  const T* get() const { return made_.load(std::memory_order_acquire); }

  // `make` returns a std::unique_ptr<const T>.
  template <class Make>
  const T& get(const Make& make) {
    if (const T* made = get()) return *made;
    std::unique_ptr<const T> mine = make();
    const T* first = nullptr;
    if (!made_.compare_exchange_strong(first, mine.get(), std::memory_order_acq_rel)) return *first;
    return *mine.release();
  }

 private:
  std::atomic<const T*> made_{nullptr};
};

// The value that was set last. A thread that cannot have it soon, as others are at it, makes its own.
template <class T>
class Latest {
 public:
  // Null if there is none, or if it cannot be had soon.
  std::shared_ptr<const T> get() const {
    if (!enter()) return nullptr;
    std::shared_ptr<const T> value = value_;
    leave();
    return value;
  }

  void set(std::shared_ptr<const T> value) {
    if (!enter()) return;
    value_.swap(value);
    leave();
  }

 private:
  // A thread that is inside only copies a pointer.
  bool enter() const {
    for (int attempt = 0; attempt < kMaxAttempts; ++attempt)
      if (!inside_.load(std::memory_order_relaxed) && !inside_.exchange(true, std::memory_order_acquire)) return true;
    return false;
  }
  void leave() const { inside_.store(false, std::memory_order_release); }

  static constexpr int kMaxAttempts = 10000;
  mutable std::atomic<bool> inside_{false};
  std::shared_ptr<const T> value_;
};

}  // namespace diba
