// The override refuses what cannot run, by name, and leaves the choice alone.

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
