// The override refuses what cannot run, by name, and leaves the choice alone.

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "check.hpp"

namespace {

std::string refusal(const std::string& name) {
  try {
    diba::select(name);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

#ifdef __x86_64__
// The compiler's own answer, of the instruction sets that every compiler knows by name.
bool compiler_says(const std::string& name) {
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (name == "avx512") return avx512;
  if (name == "avx512vnni") return avx512 && __builtin_cpu_supports("avx512vnni");
  return avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vpopcntdq");  // avx512vbmi
}
#endif

}  // namespace

int main() {
  setenv("DIBA_ISA", "pentium", 1);
  std::string message;
  try {
    diba::active();
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  CHECK(message.find("DIBA_ISA is 'pentium'") != std::string::npos && message.find("scalar") != std::string::npos);

  setenv("DIBA_ISA", "scalar", 1);
  CHECK(std::string(diba::active().name) == "scalar");

  const std::vector<std::string> names = diba::supported();
  CHECK(names.back() == "scalar");
#ifdef __x86_64__
  for (const char* name : {"avx2", "avx512", "avx512vnni", "avx512vbmi"})
    CHECK((std::find(names.begin(), names.end(), name) != names.end()) == compiler_says(name));
#endif
  for (const std::string& name : names) {
    diba::select(name);
    CHECK(std::string(diba::active().name) == name);
  }
  diba::select("scalar");
  CHECK(refusal("AVX2").find("must be one of") != std::string::npos);  // names are exact
  CHECK(refusal("").find(names.front()) != std::string::npos);
  CHECK(std::string(diba::active().name) == "scalar");
  return check::done();
}
