#include "runtime/parallel.hpp"

#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <chrono>
#include <cstdint>
#include <exception>
#include <thread>
#include <type_traits>

namespace diba {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

constexpr std::size_t kMaxThreads = 1024;
constexpr microseconds kPauseFor{10};    // then sched_yield: the thread waited for may need this processor
constexpr microseconds kSpinFor{30};     // then a worker sleeps: longer than from one call of a model to the next
constexpr microseconds kYieldFor{1000};  // then a caller sleeps for kNap at a time: such a stage is long
constexpr microseconds kNap{50};

// The state of the current stage: how many threads may take part in it, how many items are not taken yet, and how many
// were taken from the back. One word, so that no thread takes an item by an outdated number.
using Open = std::uint64_t;
constexpr int kItemBits = 26;
constexpr Open kItems = (Open{1} << kItemBits) - 1;
constexpr Open kOneFromBack = Open{1} << kItemBits;
constexpr std::size_t items(Open open) { return static_cast<std::size_t>(open & kItems); }
constexpr std::size_t from_back(Open open) { return static_cast<std::size_t>(open >> kItemBits & kItems); }
constexpr std::size_t members(Open open) { return static_cast<std::size_t>(open >> (2 * kItemBits)); }

struct alignas(64) Worker {
  sem_t wake{};
  std::atomic<bool> asleep{false};  // set by the worker; a caller that clears it wakes the worker
};

// Built by the compiler and never destroyed: workers may look at it until the process is gone, after the destructors of
// static objects.
struct Pool {
  alignas(64) std::atomic<Open> open{0};
  // Describes the open stage. Written by the caller while nothing is open, read only by those who have taken an item:
  // the stage cannot end before they report it, however late they came.
  const Stage* stage = nullptr;
  std::exception_ptr* failure = nullptr;
  std::atomic<bool> failed{false};
  alignas(64) std::atomic<std::size_t> unfinished{0};  // items not reported yet
  alignas(64) std::atomic<bool> taken{false};          // the caller who set it owns what follows
  std::size_t started = 0;
  Worker workers[kMaxThreads];  // number 0 is the caller and has none
};
static_assert(std::is_trivially_destructible_v<Pool>);
Pool pool;

// ---- waiting

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits a moment between reads of a flag.
class Backoff {
 public:
  // Returns how long it has waited in all, to about a microsecond.
  Clock::duration wait() {
    if (waited_ >= kPauseFor) sched_yield();
    relax();
    if (++waits_ % 16 == 0 || waited_ >= kPauseFor) waited_ = Clock::now() - begun_;
    return waited_;
  }

 private:
  Clock::time_point begun_ = Clock::now();
  Clock::duration waited_{0};
  unsigned waits_ = 0;
};

// ---- callers and workers

bool is_open_to(std::size_t member, Open open) { return items(open) > 0 && member < members(open); }

// Takes an item of the open stage, if there is one for this member: the first, or the last for members of odd number.
// From one call to the next each of two threads then works on what its own cache holds.
bool take(std::size_t member, std::size_t& item) {
  const bool last = member % 2 != 0;
  Open open = pool.open.load(std::memory_order_relaxed);
  while (is_open_to(member, open)) {
    const Open left = open - 1 + (last ? kOneFromBack : 0);
    if (pool.open.compare_exchange_weak(open, left, std::memory_order_acquire, std::memory_order_relaxed)) {
      const std::size_t behind = pool.stage->count - from_back(open);
      item = last ? behind - 1 : behind - items(open);
      return true;
    }
  }
  return false;
}

// Does items until none is open, then reports them; from then on the call may be over. False if there were none.
bool take_part(std::size_t member) {
  std::size_t settled = 0;
  for (std::size_t item; take(member, item); ++settled) {
    try {
      pool.stage->fn(item);
    } catch (...) {
      if (!pool.failed.exchange(true)) *pool.failure = std::current_exception();
      settled += items(pool.open.fetch_and(~kItems));  // what is left is not begun
    }
  }
  if (settled > 0) pool.unfinished.fetch_sub(settled, std::memory_order_release);
  return settled > 0;
}

// ---- workers

// `asleep` and `open` are each written by one side and then read by the other, all sequentially consistent: either the
// worker sees the stage or the caller sees the sleeper.
void sleep_until_woken(std::size_t member) {
  Worker& self = pool.workers[member];
  self.asleep.store(true);
  if (is_open_to(member, pool.open.load()) && self.asleep.exchange(false)) return;
  while (sem_wait(&self.wake) != 0) {
  }  // interrupted
}

void* serve(void* self) {
  const auto member = static_cast<std::size_t>(static_cast<Worker*>(self) - pool.workers);
  for (;;) {
    for (Backoff backoff; backoff.wait() < kSpinFor;)
      if (take_part(member)) backoff = {};
    sleep_until_woken(member);
  }
}

void wake(std::size_t threads) {
  for (std::size_t member = 1; member < threads; ++member) {
    Worker& worker = pool.workers[member];
    if (worker.asleep.load() && worker.asleep.exchange(false)) sem_post(&worker.wake);
  }
}

bool start(Worker& worker) {
  if (sem_init(&worker.wake, 0, 0) != 0) return false;
  worker.asleep = false;
  // Signals are for the program's own threads, except those that report a fault of the thread itself.
  sigset_t others, before;
  sigfillset(&others);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigdelset(&others, fault);
  pthread_sigmask(SIG_SETMASK, &others, &before);
  pthread_t thread;
  const bool done = pthread_create(&thread, nullptr, serve, &worker) == 0;
  if (done) pthread_detach(thread);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return done;
}

// The number of threads there are for a call that asks for `threads`; fewer if the system has no more.
std::size_t gather(std::size_t threads) {
  while (pool.started + 1 < threads && start(pool.workers[pool.started + 1])) ++pool.started;
  return std::min(threads, pool.started + 1);
}

// ---- fork

void forget_workers() {
  pool.open = 0;
  pool.unfinished = 0;
  pool.started = 0;
  pool.taken = false;
}

// Called before a thread takes the pool, so that no child inherits a taken one. Two threads may both register: to
// forget twice is harmless, whereas a lock could be held by a thread that the child does not have.
bool forgets_in_children() {
  static std::atomic<bool> registered{false};
  if (!registered.load(std::memory_order_acquire)) {
    if (pthread_atfork(nullptr, nullptr, forget_workers) != 0) return false;
    registered.store(true, std::memory_order_release);
  }
  return true;
}

// ---- callers

void run_alone(const Stage* stages, std::size_t stage_count) {
  for (std::size_t s = 0; s < stage_count; ++s)
    for (std::size_t i = 0; i < stages[s].count; ++i) stages[s].fn(i);
}

void run_stage(const Stage& stage, std::size_t threads) {
  assert(stage.count <= kItems);
  const std::size_t useful = std::min(threads, stage.count);
  pool.stage = &stage;
  pool.unfinished.store(stage.count, std::memory_order_relaxed);
  pool.open.store(Open{useful} << (2 * kItemBits) | stage.count);
  wake(useful);
  take_part(0);
  for (Backoff backoff; pool.unfinished.load(std::memory_order_acquire) > 0;)
    if (backoff.wait() > kYieldFor) std::this_thread::sleep_for(kNap);
}

}  // namespace

void run_stages(const Stage* stages, std::size_t stage_count, int threads) {
  std::size_t widest = 0;
  for (std::size_t s = 0; s < stage_count; ++s) widest = std::max(widest, stages[s].count);
  const std::size_t wanted = std::min({widest, static_cast<std::size_t>(std::max(threads, 1)), kMaxThreads});
  if (wanted <= 1 || widest > kItems || !forgets_in_children() ||
      pool.taken.exchange(true, std::memory_order_acquire)) {
    run_alone(stages, stage_count);
    return;
  }
  std::exception_ptr failure;
  pool.failure = &failure;
  pool.failed.store(false, std::memory_order_relaxed);
  const std::size_t present = gather(wanted);
  wake(present);  // now, as the first stage may be too narrow for them but the next is not
  for (std::size_t s = 0; s < stage_count && !failure; ++s) run_stage(stages[s], present);
  pool.taken.store(false, std::memory_order_release);
  if (failure) std::rethrow_exception(failure);
}

void parallel_ranges(std::size_t count, std::size_t grain, double work, int threads,
                     FunctionRef<void(std::size_t, std::size_t)> fn) {
  if (count == 0) return;
  const std::size_t pieces = (count + grain - 1) / grain;
  const double affordable = std::max(1.0, std::min(work / kWorkPerThread, static_cast<double>(pieces)));
  const auto ranges = static_cast<std::size_t>(std::min(static_cast<double>(std::max(threads, 1)), affordable));
  const auto bound = [&](std::size_t r) { return std::min(count, pieces * r / ranges * grain); };
  const auto one_range = [&](std::size_t r) { fn(bound(r), bound(r + 1)); };
  const Stage stage{ranges, one_range};
  run_stages(&stage, 1, threads);
}

void hold_thread() {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

}  // namespace diba
