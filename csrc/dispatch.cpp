// One explicit table of the compiled instruction sets, and the choice among them.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "scan.h"

namespace fastrnn {

#if defined(__x86_64__)
namespace avx512_bf16 {
const Kernels& table();
}
namespace avx512_vnni {
const Kernels& table();
}
namespace avx512 {
const Kernels& table();
}
namespace avx2 {
const Kernels& table();
}
#endif
namespace generic {
const Kernels& table();
}

const Kernels* const* supported_kernels() {
  static const Kernels* const* found = [] {
    static const Kernels* all[6] = {};
    int count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
      if (__builtin_cpu_supports("avx512vnni")) {
        if (__builtin_cpu_supports("avx512bf16")) all[count++] = &avx512_bf16::table();
        all[count++] = &avx512_vnni::table();
      }
      all[count++] = &avx512::table();
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) all[count++] = &avx2::table();
#endif
    all[count++] = &generic::table();
    return all;
  }();
  return found;
}

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
    const char* asked = std::getenv("FASTRNN_ISA");
    if (!asked || !*asked) return *supported_kernels()[0];
    std::string names;
    for (const Kernels* const* k = supported_kernels(); *k; ++k) {
      if (std::string(asked) == (*k)->name) return **k;
      names += std::string(names.empty() ? "" : ", ") + (*k)->name;
    }
    throw std::runtime_error("FASTRNN_ISA=" + std::string(asked) + " cannot be used here: expected one of " + names);
  }();
  return chosen;
}

}  // namespace fastrnn
