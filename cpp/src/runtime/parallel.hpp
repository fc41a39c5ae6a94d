// The only place that makes threads: a pool for the process, its workers started when first asked for and kept.
//
// A worker looks for more work for some microseconds after a call, then sleeps until it is woken. The pool serves one
// call at a time; a call that finds it taken, from another thread or from inside fn, is done by its own thread alone.
// A child made by fork begins with an empty pool, whatever the parent was doing; only fn itself must not fork and then
// return in the child.
#pragma once

#include <cstddef>

#include "runtime/function_ref.hpp"

namespace diba {

struct Stage {
  std::size_t count;
  FunctionRef<void(std::size_t)> fn;  // of a named callable that outlives the call
};

// Calls fn(i) for every i < count of stage 0 and, when all of them are finished, of stage 1, and so on, from at most
// `threads` threads, the caller's among them. Whoever is free takes the next i, so the caller waits for a worker only
// while that one is inside fn. Never allocates, except to start workers. The first thing that fn throws is rethrown
// here, after everybody has left; what had not begun by then is never begun.
void run_stages(const Stage* stages, std::size_t stage_count, int threads);

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
