// One explicit table of the compiled instruction sets, and the choice among them.
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "tables.h"
#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace fastrnn {

#if defined(__x86_64__)
namespace {

// What this CPU has and the system saves the registers of. The CPU itself is asked: __builtin_cpu_supports reads what a
// library of the compiler's has found, which on Windows may be nothing, or not be linked.
struct Features {
  bool avx2 = false, avx512 = false, vnni = false, bfloat16 = false, tiles = false;
  Features();
};

constexpr bool has(unsigned flags, unsigned wanted) { return (flags & wanted) == wanted; }
constexpr unsigned bit(int n) { return 1u << n; }

Features::Features() {
  unsigned a, b, c, d, registers, high;
  constexpr unsigned kFma = bit(12), kAes = bit(25), kXgetbv = bit(27), kAvx = bit(28);
  if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, kFma | kAes | kXgetbv | kAvx)) return;
  __asm__("xgetbv" : "=a"(registers), "=d"(high) : "c"(0));  // which the system saves
  if (!has(registers, bit(1) | bit(2)) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
  avx2 = has(b, bit(5));
#if defined(__APPLE__)
  constexpr unsigned kOfAvx512 = 0;  // which it saves from the first use on, and tells then
#else
  constexpr unsigned kOfAvx512 = bit(5) | bit(6) | bit(7);
#endif
  constexpr unsigned kF = bit(16), kDq = bit(17), kBw = bit(30), kVl = bit(31);
  avx512 = avx2 && has(registers, kOfAvx512) && has(b, kF | kDq | kBw | kVl);
  vnni = avx512 && has(c, bit(11));
  constexpr unsigned kTiles = bit(24), kOfBfloat16 = bit(22);
  const bool multiplies_tiles = has(d, kTiles | kOfBfloat16);
  const unsigned last = a;  // of the parts of leaf 7
  bfloat16 = vnni && last >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && has(a, bit(5));
  tiles = bfloat16 && multiplies_tiles;
}

// Whether the system lets this process use the registers of tiles: Linux wants to be asked, since they are 8 KiB more
// of every thread that uses them. A process that may keeps the right, its children too.
[[maybe_unused]] bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace
#endif

#if defined(__aarch64__)
// Whether this CPU has all of some extensions of Arm's: bits that Linux gives, or names that macOS knows.
[[maybe_unused]] static bool has(unsigned long which, unsigned long bits, std::initializer_list<const char*> names) {
#if defined(__linux__)
  static_cast<void>(names);
  return (getauxval(which) & bits) == bits;
#elif defined(__APPLE__)
  static_cast<void>(which), static_cast<void>(bits);
  for (const char* name : names) {
    int found = 0;
    size_t size = sizeof(found);
    if (sysctlbyname((std::string("hw.optional.arm.FEAT_") + name).c_str(), &found, &size, nullptr, 0) || !found)
      return false;
  }
  return true;
#else
  return static_cast<void>(which), static_cast<void>(bits), static_cast<void>(names), false;
#endif
}
#endif

const Kernels* const* supported_kernels() {
  static const Kernels* const* found = [] {
    static const Kernels* all[9] = {};
    [[maybe_unused]] int count = 0;
#if defined(__x86_64__)
    [[maybe_unused]] const Features cpu;
#endif
#if defined(FASTRNN_HAS_avx512_amx)
    if (cpu.tiles && may_use_tiles()) all[count++] = &avx512_amx::table();
#endif
#if defined(FASTRNN_HAS_avx512_bf16)
    if (cpu.bfloat16) all[count++] = &avx512_bf16::table();
#endif
#if defined(FASTRNN_HAS_avx512_vnni)
    if (cpu.vnni) all[count++] = &avx512_vnni::table();
#endif
#if defined(FASTRNN_HAS_avx512)
    if (cpu.avx512) all[count++] = &avx512::table();
#endif
#if defined(FASTRNN_HAS_avx2)
    if (cpu.avx2) all[count++] = &avx2::table();
#endif
#if defined(__aarch64__)
    [[maybe_unused]] constexpr unsigned long kCapabilities = 16, kMore = 26;  // AT_HWCAP, AT_HWCAP2
    [[maybe_unused]] constexpr unsigned long kProducts = 1ul << 20, kMatrices = 1ul << 13, kBfloat16 = 1ul << 14;
    [[maybe_unused]] const bool dotprod = has(kCapabilities, kProducts, {"DotProd"});
#if defined(FASTRNN_HAS_neon_bf16)
    if (dotprod && has(kMore, kMatrices | kBfloat16, {"I8MM", "BF16"})) all[count++] = &neon_bf16::table();
#endif
#if defined(FASTRNN_HAS_neon_dotprod)
    if (dotprod) all[count++] = &neon_dotprod::table();
#endif
#endif
#if defined(FASTRNN_HAS_generic)
    all[count++] = &generic::table();
#endif
    return all;
  }();
  return found;
}

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
    const char* asked = std::getenv("FASTRNN_ISA");
    if ((!asked || !*asked) && *supported_kernels()) return **supported_kernels();
    std::string names;
    for (const Kernels* const* k = supported_kernels(); *k; ++k) {
      if (std::string(asked) == (*k)->name) return **k;
      names += std::string(names.empty() ? "" : ", ") + (*k)->name;
    }
    if (names.empty()) throw std::runtime_error("this CPU runs no instruction set that fastrnn was compiled for");
    throw std::runtime_error("FASTRNN_ISA=" + std::string(asked) + " cannot be used here: expected one of " + names);
  }();
  return chosen;
}

}  // namespace fastrnn
