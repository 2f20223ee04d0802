// What this machine can do at most, measured: the limits that kernels are held against (benchmarks/kernels.py).
#pragma once
#include <string>

#include "pool.h"

namespace octavo {

// Per second, on all threads of the pool. "read": bytes of memory read, far more than any cache holds. "int8", "bf16",
// "f32": multiplications and additions in registers, with the instructions that the instruction set's products are made of
// (where it has none of their own, those of f32). Takes a fraction of a second. Throws std::invalid_argument for another kind.
double probe(Pool& pool, const std::string& kind, const std::string& isa);

}  // namespace octavo
