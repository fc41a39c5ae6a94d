// parallel_for: every index once, aligned ranges, errors reach the caller, forked children work.

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "diba/parallel.hpp"

namespace {

constexpr double kMuch = 1e12;

void covers_once(std::size_t count, std::size_t grain, int threads) {
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

void rethrows() {
  for (const std::size_t bad : {0U, 999U}) {
    bool caught = false;
    try {
      diba::parallel_for(1000, 1, kMuch, 4, [&](std::size_t begin, std::size_t end) {
        if (begin <= bad && bad < end) throw std::runtime_error("bad index");
      });
    } catch (const std::runtime_error&) {
      caught = true;
    }
    CHECK(caught);
  }
}

void survives_fork() {
  covers_once(100, 1, 4);
  const pid_t child = fork();
  if (child == 0) {
    alarm(10);  // a hang is a failure
    std::atomic<int> sum{0};
    diba::parallel_for(100, 1, kMuch, 4,
                       [&](std::size_t begin, std::size_t end) { sum += static_cast<int>(end - begin); });
    _exit(sum == 100 ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void small_work_stays_here() {
  int calls = 0;  // not atomic: only this thread may run it
  diba::parallel_for(1000, 1, 10.0, 8, [&](std::size_t, std::size_t) { ++calls; });
  CHECK(calls == 1);
}

}  // namespace

int main() {
  for (const std::size_t count : {0U, 1U, 2U, 3U, 64U, 1000U})
    for (const std::size_t grain : {1U, 16U})
      for (const int threads : {-1, 1, 2, 3, 7, 64}) covers_once(count, grain, threads);
  rethrows();
  small_work_stays_here();
  survives_fork();
  return check::done();
}
