// The only place that makes threads: one pool for the process, whose workers are started when first needed and kept.
//
// A worker looks for more work for some microseconds after a call, then sleeps until it is woken. The pool serves one
// call at a time; a call that finds it taken, from another thread or from inside fn, is done by its own thread alone.
// A child made by fork begins with an empty pool, whatever the parent was doing; only fn itself must not fork and then
// return in the child.
#pragma once

#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>

namespace diba {

template <class Signature>
class FunctionRef;

// A reference to a callable, which must outlive it: two pointers, no allocation. Temporaries are refused, as they would
// be gone before the call.
template <class Result, class... Arguments>
class FunctionRef<Result(Arguments...)> {
 public:
  template <class F, std::enable_if_t<!std::is_same_v<std::remove_const_t<F>, FunctionRef> &&
                                          std::is_invocable_r_v<Result, F&, Arguments...>,
                                      int> = 0>
  FunctionRef(F& f) noexcept  // NOLINT(google-explicit-constructor): it stands for f
      : callable_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))), call_([](void* c, Arguments... a) {
          return static_cast<Result>((*static_cast<F*>(c))(std::forward<Arguments>(a)...));
        }) {
    static_assert(std::is_object_v<F>, "pass a lambda that calls the function");
  }

  Result operator()(Arguments... a) const { return call_(callable_, std::forward<Arguments>(a)...); }

 private:
  void* callable_;
  Result (*call_)(void*, Arguments...);
};

struct Stage {
  std::size_t count;
  FunctionRef<void(std::size_t)> fn;  // refers to a named callable that outlives the call
};

// Calls fn(i) for every i < count of stage 0 and, when all of them are finished, of stage 1, and so on, from at most
// `threads` threads, the caller's among them. A thread that is free takes the next i, so the caller waits for a worker
// only while that worker is inside fn. Never allocates, except to start workers. The first exception of fn is rethrown
// here after all threads have left; calls that had not begun by then are not made.
void run_stages(const Stage* stages, std::size_t stage_count, int threads);

// The threads of a call: at most so many of diba's pool, or of the pool of a program that has its own, such as an
// inference runtime. The caller's thread is one of them.
class Executor {
 public:
  // As run_stages.
  using Run = void (*)(void* pool, const Stage* stages, std::size_t stage_count, int threads);

  Executor(int most) : threads_(most) {}  // NOLINT(google-explicit-constructor): most callers have a number
  Executor(int most, Run runs, void* pool) : threads_(most), run_(runs), pool_(pool) {}

  int threads() const { return threads_; }
  Executor at_most(int most) const { return {most < threads_ ? most : threads_, run_, pool_}; }

  void run(const Stage* stages, std::size_t stage_count) const {
    if (run_ == nullptr || threads_ <= 1) {
      run_stages(stages, stage_count, threads_);
    } else {
      run_(pool_, stages, stage_count, threads_);
    }
  }

 private:
  int threads_;
  Run run_ = nullptr;
  void* pool_ = nullptr;
};

// To wake a worker that sleeps takes its caller 2 to 4 microseconds, and it begins about 12 later (awake: 0.2 and 1). A
// thread's share should take longer than that: 2^17 elementary operations are 15 to 30 microseconds.
inline constexpr double kWorkPerThread = 1 << 17;

// parallel_for of a callable by reference.
void parallel_ranges(std::size_t count, std::size_t grain, double work, int threads,
                     FunctionRef<void(std::size_t, std::size_t)> fn);

// Calls fn(begin, end) on disjoint ranges that cover [0, count), one per thread, as run_stages does. `work` is a rough
// number of elementary operations in all: below the cost of waking a thread the caller does everything itself. Ranges
// start at multiples of `grain`.
template <class F>
void parallel_for(std::size_t count, std::size_t grain, double work, int threads, const F& fn) {
  parallel_ranges(count, grain, work, threads, fn);
}

// Never returns: for a thread that may neither go on nor end while the process does.
[[noreturn]] void hold_thread();

}  // namespace diba
