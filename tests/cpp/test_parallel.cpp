// The thread pool: every item once, stages in order, errors reach the caller, any number of callers.
//
// A hang is a failure, by alarm(). Forks and exits: test_fork.cpp.

#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.hpp"
#include "runtime/parallel.hpp"

namespace {

constexpr double kMuch = 1e12;
std::atomic<std::size_t> allocations{0};

}  // namespace

void* operator new(std::size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);  // orders nothing that ThreadSanitizer should see unordered
  if (void* p = std::malloc(size)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }

namespace {

using Items = diba::FunctionRef<void(std::size_t)>;
static_assert(std::is_trivially_copyable_v<Items> && sizeof(Items) == 2 * sizeof(void*));
static_assert(std::is_constructible_v<Items, void (*&)(std::size_t)>);
static_assert(!std::is_constructible_v<Items, void (*)(std::size_t)>, "a temporary would be gone before the call");

template <class Fn>
void run_one_stage(std::size_t count, int threads, Fn fn) {
  const diba::Stage stage{count, fn};
  diba::run_stages(&stage, 1, threads);
}

std::size_t threads_of_process() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& task : std::filesystem::directory_iterator("/proc/self/task")) ++count;
  return count;
}

// Returns only if `threads` threads are in fn at once.
void meet(int threads) {
  std::atomic<int> present{0};
  run_one_stage(static_cast<std::size_t>(threads), threads, [&](std::size_t) {
    for (++present; present < threads;) sched_yield();
  });
}

// Must come first, before any workers are started.
void workers_start_when_needed() {
  if (!std::filesystem::exists("/proc/self/task")) return void(std::puts("skipped: no /proc/self/task"));
  // With the first thread ThreadSanitizer starts one of its own; one that has ended may be listed for a while.
  std::atomic<bool> done{false};
  std::thread first([&] {
    while (!done) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  });
  const std::size_t before = threads_of_process();
  const auto added = [&](std::size_t count, int threads) {
    run_one_stage(count, threads, [](std::size_t) {});
    return threads_of_process() - before;
  };
  CHECK(added(100, 1) == 0);
  CHECK(added(1, 8) == 0);
  CHECK(added(2, 8) == 1);
  CHECK(added(100, 3) == 2);
  CHECK(added(100, 2) == 2);
  done = true;
  first.join();
}

void ranges_cover_once(std::size_t count, std::size_t grain, int threads) {
  std::vector<std::atomic<int>> seen(count);
  std::atomic<bool> aligned{true};
  diba::parallel_for(count, grain, kMuch, threads, [&](std::size_t begin, std::size_t end) {
    if (begin % grain != 0) aligned = false;
    for (std::size_t i = begin; i < end; ++i) ++seen[i];
  });
  bool once = true;
  for (const std::atomic<int>& times : seen) once = once && times == 1;
  CHECK_IN(once && aligned, std::to_string(count) + " by " + std::to_string(threads));
}

void small_work_stays_here() {
  int calls = 0;  // not atomic: only this thread may run it
  diba::parallel_for(1000, 1, 10.0, 8, [&](std::size_t, std::size_t) { ++calls; });
  CHECK(calls == 1);
}

// Every item once, and none before all items of the stages before.
bool stages_run_in_order(const std::vector<std::size_t>& counts, int threads) {
  std::vector<std::vector<std::atomic<int>>> seen;
  std::vector<std::atomic<std::size_t>> ended(counts.size());
  std::atomic<bool> ordered{true};
  std::vector<std::function<void(std::size_t)>> work;
  std::vector<diba::Stage> stages;
  work.reserve(counts.size());
  for (std::size_t s = 0; s < counts.size(); ++s) {
    seen.emplace_back(counts[s]);
    work.emplace_back([&, s](std::size_t i) {
      for (std::size_t t = 0; t < s; ++t)
        if (ended[t] != counts[t]) ordered = false;
      if (i % 5 == 4) sched_yield();  // lets the others get ahead
      ++seen[s][i];
      ++ended[s];
    });
    stages.push_back({counts[s], work[s]});
  }
  diba::run_stages(stages.data(), stages.size(), threads);
  bool once = true;
  for (const auto& stage : seen)
    for (const std::atomic<int>& times : stage) once = once && times == 1;
  return once && ordered;
}

void every_item_once_in_order() {
  for (const int threads : {-1, 0, 1, 2, 3, 7, 64}) {
    const std::string by = "by " + std::to_string(threads);
    for (const std::size_t count : {0U, 1U, 2U, 3U, 64U, 1000U}) CHECK_IN(stages_run_in_order({count}, threads), by);
    CHECK_IN(stages_run_in_order({}, threads), by);
    for (int i = 0; i < 100; ++i) CHECK_IN(stages_run_in_order({1, 32, 0, 1, 5, 2}, threads), by);
  }
}

void errors_reach_the_caller() {
  for (const int threads : {1, 2, 4})
    for (const std::size_t bad : {0U, 999U}) {
      std::atomic<std::size_t> begun{0};
      std::atomic<bool> went_on{false};
      std::string caught;
      const auto fails = [&](std::size_t i) {
        ++begun;
        if (i == bad) throw std::runtime_error("item " + std::to_string(i));
        if (bad == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      };
      const auto next = [&](std::size_t) { went_on = true; };
      const diba::Stage stages[] = {{1000, fails}, {1000, next}};
      try {
        diba::run_stages(stages, 2, threads);
      } catch (const std::runtime_error& error) {
        caught = error.what();
      }
      CHECK(caught == "item " + std::to_string(bad) && !went_on);
      CHECK(bad != 0 || begun < 1000);
    }
  bool caught = false;
  try {
    diba::parallel_for(100, 1, kMuch, 4, [](std::size_t, std::size_t) { throw std::runtime_error("every range"); });
  } catch (const std::runtime_error&) {
    caught = true;
  }
  CHECK(caught);
  meet(4);  // no worker was lost
}

void workers_come_awake_or_asleep() {
  for (const int threads : {2, 3, 7}) {
    for (int i = 0; i < 20; ++i) meet(threads);
    for (const int pause : {5, 20, 30, 31, 35, 50, 20000})  // microseconds; workers fall asleep after about 30
      for (int i = 0; i < 10; ++i) {
        std::this_thread::sleep_for(std::chrono::microseconds(pause));
        meet(threads);
      }
  }
}

// Workers of a wider call that come late must not help a narrower one.
void never_more_threads_than_asked_for() {
  std::atomic<int> inside{0}, most{0};
  for (int i = 0; i < 300; ++i) {
    run_one_stage(16, 8, [](std::size_t) {});
    run_one_stage(16, 2, [&](std::size_t) {
      const int now = ++inside;
      for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
      }
      sched_yield();
      --inside;
    });
  }
  CHECK(most <= 2);
}

void a_call_inside_a_call_runs_alone() {
  std::atomic<int> items{0};
  std::atomic<bool> alone{true};
  run_one_stage(20, 4, [&](std::size_t) {
    const std::thread::id self = std::this_thread::get_id();
    run_one_stage(50, 4, [&](std::size_t) {
      if (std::this_thread::get_id() != self) alone = false;
      ++items;
    });
  });
  CHECK(items == 1000 && alone);
}

void callers_do_not_wait_for_each_other() {
  std::atomic<bool> done{false};
  std::atomic<int> here{0};
  std::thread holder([&] {
    run_one_stage(2, 2, [&](std::size_t) {
      for (++here; !done;) sched_yield();
    });
  });
  while (here < 2) sched_yield();
  int items = 0;  // not atomic: only this thread may count
  run_one_stage(100, 4, [&](std::size_t) { ++items; });
  done = true;
  holder.join();
  CHECK(items == 100);
}

void many_callers_at_once() {
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([&wrong, c] {
      for (int call = 0; call < 2000; ++call) {
        std::vector<int> values(1 + static_cast<std::size_t>(call % 9));
        int sum = 0;
        const auto fill = [&](std::size_t i) { values[i] = static_cast<int>(i) + c; };
        const auto add = [&](std::size_t) {
          for (const int value : values) sum += value;
        };
        const diba::Stage stages[] = {{values.size(), fill}, {1, add}};
        diba::run_stages(stages, 2, 2 + call % 3);
        const int n = static_cast<int>(values.size());
        if (sum != n * (n - 1) / 2 + n * c) ++wrong;
      }
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);
}

void calls_allocate_nothing() {
  meet(3);
  const std::size_t before = allocations;
  std::size_t total = 0;
  const auto prepare = [&](std::size_t) { ++total; };
  const auto nothing = [](std::size_t) {};
  const diba::Stage stages[] = {{1, prepare}, {2, nothing}, {1, prepare}, {3, nothing}};
  constexpr std::size_t kCalls = 100000;
  for (std::size_t i = 0; i < kCalls; ++i) diba::run_stages(stages, 4, 3);
  CHECK(total == 2 * kCalls && allocations == before);
}

}  // namespace

int main() {
  alarm(200);
  workers_start_when_needed();
  for (const std::size_t count : {0U, 1U, 2U, 3U, 64U, 1000U})
    for (const std::size_t grain : {1U, 16U})
      for (const int threads : {-1, 1, 2, 3, 7, 64}) ranges_cover_once(count, grain, threads);
  small_work_stays_here();
  every_item_once_in_order();
  errors_reach_the_caller();
  workers_come_awake_or_asleep();
  never_more_threads_than_asked_for();
  a_call_inside_a_call_runs_alone();
  callers_do_not_wait_for_each_other();
  many_callers_at_once();
  calls_allocate_nothing();
  return check::done();
}
