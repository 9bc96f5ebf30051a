// The table of kernels of each instruction set. Those that the build compiles have one: FASTRNN_HAS_avx2 and so on tell
// csrc/dispatch.cpp. A larger set takes from one below it, FASTRNN_BASE, what it does not change.
#pragma once

#include "scan.h"

#define FASTRNN_TEXT_(name) #name
#define FASTRNN_TEXT(name) FASTRNN_TEXT_(name)

namespace fastrnn {

namespace avx512_amx {
const Kernels& table();
}
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
namespace neon_bf16 {
const Kernels& table();
}
namespace neon_dotprod {
const Kernels& table();
}
namespace generic {
const Kernels& table();
}

}  // namespace fastrnn
