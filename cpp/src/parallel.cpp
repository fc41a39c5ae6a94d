#include "diba/parallel.hpp"

#include <algorithm>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace diba {
namespace {

// A thread costs 20 to 30 microseconds to start and join: give each at least several times that.
constexpr double kWorkPerThread = 1 << 20;

}  // namespace

void parallel_for(std::size_t count, std::size_t grain, double work, int threads,
                  const std::function<void(std::size_t, std::size_t)>& fn) {
  if (count == 0) return;
  const std::size_t pieces = (count + grain - 1) / grain;
  const double affordable = std::max(1.0, std::min(work / kWorkPerThread, static_cast<double>(pieces)));
  const auto workers = static_cast<std::size_t>(std::min(static_cast<double>(std::max(threads, 1)), affordable));
  const auto bound = [&](std::size_t t) { return std::min(count, pieces * t / workers * grain); };

  std::vector<std::exception_ptr> failures(workers);
  const auto run = [&](std::size_t t, std::size_t end) {
    try {
      fn(bound(t), end);
    } catch (...) {
      failures[t] = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  others.reserve(workers - 1);
  std::size_t started = 1;
  try {
    for (; started < workers; ++started) others.emplace_back([&run, &bound, t = started] { run(t, bound(t + 1)); });
  } catch (const std::system_error&) {
    // The system is out of threads: the caller does what was left.
  }
  run(0, bound(1));
  if (started < workers) run(started, count);
  for (std::thread& other : others) other.join();
  for (const std::exception_ptr& failure : failures)
    if (failure) std::rethrow_exception(failure);
}

}  // namespace diba
