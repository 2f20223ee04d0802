"""The native backend: C++ kernels (csrc/, built as `_native`) for AVX-512, AVX2 and any other 64-bit CPU."""
