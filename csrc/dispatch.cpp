// One explicit table of the compiled instruction sets, and the choice among them.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "tables.h"
#if defined(FASTRNN_HAS_avx512_amx)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace fastrnn {

#if defined(FASTRNN_HAS_avx512_amx)
// Whether this CPU multiplies tiles of bfloat16, and the system lets this process: Linux wants to be asked, since the
// registers are 8 KiB more of every thread that uses them. A process that may keeps the right, its children too.
static bool may_use_tiles() {
  unsigned a, b, c, d;
  constexpr unsigned kTiles = 1u << 24, kOfBfloat16 = 1u << 22, kNeeded = kTiles | kOfBfloat16;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kNeeded) != kNeeded) return false;
#if defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#endif

const Kernels* const* supported_kernels() {
  static const Kernels* const* found = [] {
    static const Kernels* all[7] = {};
    [[maybe_unused]] int count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    [[maybe_unused]] const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("aes");
    [[maybe_unused]] const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                                         __builtin_cpu_supports("avx512vl");
    [[maybe_unused]] const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
#endif
#if defined(FASTRNN_HAS_avx512_amx)
    if (vnni && __builtin_cpu_supports("avx512bf16") && may_use_tiles()) all[count++] = &avx512_amx::table();
#endif
#if defined(FASTRNN_HAS_avx512_bf16)
    if (vnni && __builtin_cpu_supports("avx512bf16")) all[count++] = &avx512_bf16::table();
#endif
#if defined(FASTRNN_HAS_avx512_vnni)
    if (vnni) all[count++] = &avx512_vnni::table();
#endif
#if defined(FASTRNN_HAS_avx512)
    if (avx512) all[count++] = &avx512::table();
#endif
#if defined(FASTRNN_HAS_avx2)
    if (avx2) all[count++] = &avx2::table();
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
