// The only place that makes threads.
#pragma once

#include <cstddef>
#include <functional>

namespace diba {

// Calls fn(begin, end) on disjoint ranges that cover [0, count), from at most `threads` threads, the caller's among
// them. `work` is a rough number of elementary operations in all: below the cost of starting a thread the caller does
// everything itself. What fn throws is rethrown here. Nothing is kept between calls, so forked children are safe.
// Ranges start at multiples of `grain`.
void parallel_for(std::size_t count, std::size_t grain, double work, int threads,
                  const std::function<void(std::size_t, std::size_t)>& fn);

}  // namespace diba
