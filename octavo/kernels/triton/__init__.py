"""Octavo's kernels for NVIDIA GPUs, in Triton: the same file names as in kernels/reference, which says what each
means."""
