// Memory for packed matrices: large mappings that matrices share, in huge pages where the system gives them. Weights are
// streamed once a token; with 4 KiB pages the address translation alone costs a sixth of the bandwidth (measured).
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace octavo {

// `bytes` of zeroed memory at a multiple of 64. It is given back when the last piece of its mapping dies. Throws
// std::bad_alloc.
std::shared_ptr<uint8_t> weight_memory(size_t bytes);

}  // namespace octavo
