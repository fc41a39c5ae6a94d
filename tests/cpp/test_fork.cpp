// The thread pool in a child, without threads to be had, and after main().

#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "check.hpp"
#include "runtime/parallel.hpp"

namespace {

template <class Fn>
void run_one_stage(std::size_t count, int threads, Fn fn) {
  const diba::Stage stage{count, fn};
  diba::run_stages(&stage, 1, threads);
}

// Returns only if three threads are in one call at once; true if a call of two stages is right as well.
bool pool_works() {
  std::atomic<int> present{0};
  run_one_stage(3, 3, [&](std::size_t) {
    for (++present; present < 3;) sched_yield();
  });
  std::atomic<int> first{0}, second{0};
  const auto count = [&](std::size_t) { ++first; };
  const auto after = [&](std::size_t) { second += first; };
  const diba::Stage stages[] = {{100, count}, {10, after}};
  diba::run_stages(stages, 2, 3);
  return first == 100 && second == 1000;
}

#ifndef __SANITIZE_THREAD__

// Runs fn in a child; true if it returned true there. A hang is a failure.
template <class Fn>
bool in_child(Fn fn) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    _exit(fn() ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void forked_children_have_a_pool() {
  CHECK(pool_works());
  CHECK(in_child(pool_works));
  CHECK(in_child([] { return pool_works() && in_child(pool_works); }));
  std::atomic<bool> done{false};
  std::atomic<int> here{0};
  std::thread holder([&] {
    run_one_stage(3, 3, [&](std::size_t) {
      for (++here; !done;) sched_yield();
    });
  });
  while (here < 3) sched_yield();
  CHECK(in_child(pool_works));  // the parent is in the middle of a call
  done = true;
  holder.join();
  CHECK(pool_works());
}

// The default stack of threads is made larger than the address space, so none can be started.
void does_without_threads() {
#ifdef __GLIBC__
  CHECK(in_child([] {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, std::size_t{1} << 48);
    const bool refused = pthread_setattr_default_np(&attributes) == 0;
    int items = 0;  // not atomic: only this thread may count
    run_one_stage(100, 4, [&](std::size_t) { ++items; });
    pthread_attr_setstacksize(&attributes, std::size_t{1} << 20);
    pthread_setattr_default_np(&attributes);
    return refused && items == 100 && pool_works();  // threads can be had again
  }));
#else
  std::puts("skipped: no way to run out of threads");
#endif
}

#endif

struct CallsAtExit {
  ~CallsAtExit() {
    if (!pool_works()) std::abort();
  }
} calls_at_exit;

}  // namespace

int main() {
  alarm(100);
#ifdef __SANITIZE_THREAD__
  std::puts("skipped: fork, which ThreadSanitizer does not support in a process with threads");
  CHECK(pool_works());
#else
  does_without_threads();  // first: there are no workers yet
  forked_children_have_a_pool();
#endif
  return check::done();
}
