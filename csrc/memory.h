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

// Asks for huge pages over [data, data + bytes), as far as whole ones lie in it. A wish: nothing happens where they are not
// to be had.
void prefer_huge_pages(void* data, size_t bytes);

}  // namespace octavo
