"""Block shapes of the kernels, by size: tables kept here, not searched at start. Used by the kernels beside it.

Where a table says so its entries were measured (benchmarks/results/h200); the others are predicted from registers and
shared memory and wait for a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.kernels.triton.launch import next_power_of_2


@dataclass(frozen=True)
class Shape:
    """Tile sizes of one launch, its warps and the depth of its software pipeline."""

    m: int
    n: int
    k: int = 0
    warps: int = 4
    stages: int = 2


def prefill_shape(head_dim: int, group: int) -> Shape:
    """Predicted: q and two stages of K and V within 227 KiB, the f32 sums within a warp's registers."""
    m = max(128 if head_dim <= 128 else 64, next_power_of_2(group))
    return Shape(m, 128 if head_dim <= 64 else 64, warps=8 if m >= 128 else 4, stages=2)


def decode_shape(head_dim: int, group: int) -> Shape:
    """Predicted: enough bytes in flight for the memory: 64 keys of 128 features are 16 KiB a stage for each of K, V."""
    return Shape(max(16, next_power_of_2(group)), 128 if head_dim <= 64 else 64, warps=4, stages=3)


def decode_splits(rows: int, kv_heads: int, max_context: int, processors: int) -> int:
    """Parts of a row's context: enough programs to fill the device twice, none with fewer than 256 keys. A power of
    two, since each number is a kernel to compile, and contexts grow by one every step."""
    wanted = -(-2 * processors // max(rows * kv_heads, 1))
    return min(next_power_of_2(wanted), next_power_of_2(max_context // 256 + 1) // 2 or 1, 64)


def row_shape(kind: str, n: int, k: int) -> Shape:
    """Predicted: 16 weight rows a program, 16 bytes a thread and load along k; fewer rows where that leaves the device
    with too few programs."""
    rows = 16 if n >= 4096 else 8 if n >= 1024 else 4
    width = {"dense": 256, "int8": 512, "int4": 1024}[kind]
    return Shape(1, rows, min(width, next_power_of_2(k)), warps=4, stages=3)


def matmul_shape(tokens: int, n: int, k: int) -> Shape:
    """Predicted: the smallest tile that holds all tokens, up to 128, so that the weight is read once for each 128."""
    m = min(max(next_power_of_2(tokens), 16), 128)
    return Shape(
        m, 128 if n >= 4096 and m >= 64 else 64, min(64, next_power_of_2(k)), warps=8 if m >= 128 else 4, stages=3
    )
