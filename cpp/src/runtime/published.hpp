// What threads make for themselves and leave to the others, without a lock that could be waited for: a child made by
// fork would find it taken by a thread that it does not have, for ever.
#pragma once

#include <atomic>
#include <memory>
#include <utility>

namespace diba {

// Made by every thread that finds nothing yet; what the first one made is everybody's from then on.
template <class T>
class MadeOnce {
 public:
  MadeOnce() = default;
  MadeOnce(const MadeOnce&) = delete;
  MadeOnce& operator=(const MadeOnce&) = delete;
  ~MadeOnce() { delete made_.load(std::memory_order_relaxed); }

  // Null as long as there is none.
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

// The one that was made last. Who finds it in use by others for long makes another.
template <class T>
class Latest {
 public:
  // Null if there is none or it cannot be had.
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
  // Inside, nobody does more than copy a pointer.
  bool enter() const {
    for (int looks = 0; looks < kPatience; ++looks)
      if (!inside_.load(std::memory_order_relaxed) && !inside_.exchange(true, std::memory_order_acquire)) return true;
    return false;
  }
  void leave() const { inside_.store(false, std::memory_order_release); }

  static constexpr int kPatience = 10000;
  mutable std::atomic<bool> inside_{false};
  std::shared_ptr<const T> value_;
};

}  // namespace diba
