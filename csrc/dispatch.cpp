// Which instruction sets were compiled in and run here. Order of preference: avx512, avx2, portable.
#include <cstring>
#include <initializer_list>

#include "kernels.h"

namespace octavo {
#if defined(OCTAVO_X86)
namespace avx512 { extern const Kernels table; }
namespace avx2 { extern const Kernels table; }
#endif
namespace portable { extern const Kernels table; }

static bool supported(const char* name) {
#if defined(OCTAVO_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (!std::strcmp(name, "avx2")) return avx2;
  if (!std::strcmp(name, "avx512"))
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
#endif
  return !std::strcmp(name, "portable");
}

const Kernels* kernels_for(const char* name) {
  if (!supported(name)) return nullptr;
#if defined(OCTAVO_X86)
  if (!std::strcmp(name, "avx512")) return &avx512::table;
  if (!std::strcmp(name, "avx2")) return &avx2::table;
#endif
  return &portable::table;
}

const Kernels* best_kernels() {
  for (const char* name : {"avx512", "avx2"})
    if (const Kernels* found = kernels_for(name)) return found;
  return &portable::table;
}

}  // namespace octavo
