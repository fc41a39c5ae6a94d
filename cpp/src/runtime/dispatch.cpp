// The only file that asks the processor or reads DIBA_ISA. Baseline code only.

#include "runtime/dispatch.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#ifdef DIBA_X86_KERNELS
#include <cpuid.h>
#endif
#ifdef DIBA_AMX_KERNELS
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace diba {
namespace {

bool always() { return true; }

#ifdef DIBA_X86_KERNELS
bool all(unsigned word, unsigned bits) { return (word & bits) == bits; }

// What the processor has and the operating system saves. __builtin_cpu_supports reads a table of the compiler's
// run-time library instead, which is empty in zig's.
struct Processor {
  unsigned basic = 0;                  // CPUID leaf 1, ecx
  unsigned ebx = 0, ecx = 0, edx = 0;  // CPUID leaf 7
  unsigned saved = 0;                  // XCR0

  Processor() {
    unsigned eax = 0, other = 0;
    if (!__get_cpuid(1, &eax, &other, &basic, &other) || !all(basic, bit_OSXSAVE)) return;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(other) : "c"(0));
  }
};
constexpr unsigned kSavesAvx = 0x6, kSavesAvx512 = 0xe6, kSavesTiles = 0x60000;
constexpr unsigned kAvx512Features = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
constexpr unsigned kAmxFeatures = 3 << 24;  // AMX-TILE and AMX-INT8, whose names differ between compilers

// Each predicate names exactly the flags that CMakeLists.txt gives the file.
bool has_avx2() {
  const Processor cpu;
  return all(cpu.saved, kSavesAvx) && all(cpu.ebx, bit_AVX2) && all(cpu.basic, bit_FMA);
}
bool has_avx512() {
  const Processor cpu;
  return all(cpu.saved, kSavesAvx512) && all(cpu.ebx, kAvx512Features);
}
bool has_avx512_vnni() { return has_avx512() && all(Processor().ecx, bit_AVX512VNNI); }
bool has_avx512_vbmi() { return has_avx512_vnni() && all(Processor().ecx, bit_AVX512VBMI | bit_AVX512VPOPCNTDQ); }

// Tables that differ from kAvx512 in some members.
Kernels with_vnni() {
  Kernels kernels = kAvx512;
  kernels.name = "avx512vnni";
  kernels.integer_tile = integer_tile_vnni;
  kernels.code_sums = code_sums_vnni;
  return kernels;
}
Kernels with_vbmi() {
  Kernels kernels = with_vnni();
  kernels.name = "avx512vbmi";
  kernels.common_counts = common_counts_vpopcntdq;
  kernels.lookup = &kLookupAvx512Vbmi;
  return kernels;
}

#ifdef DIBA_AMX_KERNELS
// The state of tile registers is large: a process must ask Linux before it uses them.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}
bool has_amx() {
  const Processor cpu;
  return has_avx512_vbmi() && all(cpu.saved, kSavesTiles) && all(cpu.edx, kAmxFeatures) && may_use_tiles();
}

const Kernels& amx() {
  static const Kernels table = [] {
    Kernels kernels = with_vbmi();
    kernels.name = "amx";
    kernels.integer_tile = integer_tile_amx;
    return kernels;
  }();
  return table;
}
#endif

const Kernels& avx512_vbmi() {
  static const Kernels table = with_vbmi();
  return table;
}
const Kernels& avx512_vnni() {
  static const Kernels table = with_vnni();
  return table;
}
const Kernels& avx512() { return kAvx512; }
const Kernels& avx2() { return kAvx2; }
#endif
#ifdef DIBA_NEON_KERNELS
const Kernels& neon() { return kNeon; }
#endif
const Kernels& scalar() { return kScalar; }

struct Candidate {
  const Kernels& (*kernels)();
  bool (*runs_here)();
};

constexpr Candidate kCandidates[] = {
#ifdef DIBA_AMX_KERNELS
    {amx, has_amx},
#endif
#ifdef DIBA_X86_KERNELS
    {avx512_vbmi, has_avx512_vbmi},
    {avx512_vnni, has_avx512_vnni},
    {avx512, has_avx512},
    {avx2, has_avx2},
#endif
#ifdef DIBA_NEON_KERNELS
    {neon, always},
#endif
    {scalar, always},
};

const Kernels& find(const std::string& name, const char* asked_by) {
  std::string valid;
  for (const Candidate& candidate : kCandidates) {
    if (!candidate.runs_here()) continue;
    if (name == candidate.kernels().name) return candidate.kernels();
    valid += std::string(valid.empty() ? "" : ", ") + candidate.kernels().name;
  }
  throw std::invalid_argument(std::string(asked_by) + " is '" + name + "', must be one of: " + valid +
                              " (what this build and this CPU support)");
}

const Kernels& first_choice() {
  const char* name = std::getenv("DIBA_ISA");
  if (name != nullptr && *name != '\0') return find(name, "DIBA_ISA");
  for (const Candidate& candidate : kCandidates)
    if (candidate.runs_here()) return candidate.kernels();
  return kScalar;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

std::vector<std::string> supported() {
  std::vector<std::string> names;
  for (const Candidate& candidate : kCandidates)
    if (candidate.runs_here()) names.emplace_back(candidate.kernels().name);
  return names;
}

const Kernels& active() {
  const Kernels* kernels = chosen.load(std::memory_order_acquire);
  if (kernels == nullptr) {
    kernels = &first_choice();
    chosen.store(kernels, std::memory_order_release);
  }
  return *kernels;
}

void select(const std::string& name) { chosen.store(&find(name, "isa"), std::memory_order_release); }

}  // namespace diba
