// This instruction set's table, for dispatch.cpp.
#include "functions.h"

#define OCTAVO_STRING_(x) #x
#define OCTAVO_STRING(x) OCTAVO_STRING_(x)

namespace octavo {
namespace OCTAVO_ISA {

extern const Kernels table;
const Kernels table = {
    OCTAVO_STRING(OCTAVO_ISA), linear, gate_up, convert, norm, silu_mul, embed, elementwise, rope_cache, attention_scratch,
    attention, attention_merge, sample, argmax, logprobs, top, mask, penalize, head_norm, short_conv, delta_rule,
};

}  // namespace OCTAVO_ISA
}  // namespace octavo
