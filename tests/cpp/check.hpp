// A small test harness: CHECK counts and reports, check::done() is the value that main returns.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "runtime/dispatch.hpp"

namespace check {

inline int checks = 0;
inline int failures = 0;

inline void report(bool passed, const char* what, const char* file, int line, const std::string& context) {
  ++checks;
  if (passed) return;
  ++failures;
  std::printf("%s:%d: failed: %s  [%s]\n", file, line, what, context.c_str());
}

inline int done() {
  std::printf("%d passed, %d failed\n", checks - failures, failures);
  return failures == 0 && checks > 0 ? 0 : 1;
}

// Calls fn(name) with every supported instruction set active in turn.
template <typename Fn>
void for_each_isa(Fn fn) {
  for (const std::string& name : diba::supported()) {
    diba::select(name);
    fn(name);
  }
}

}  // namespace check

#define CHECK_IN(condition, context) check::report((condition), #condition, __FILE__, __LINE__, (context))
#define CHECK(condition) CHECK_IN(condition, "")
