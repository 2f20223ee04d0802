"""Cases of the matrix products: bf16 (one row ours, more rows the library's), int8, int4 and fp8 by groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from case import BF16, Call, Case, Model, normal, relative

from octavo.kernels.layouts import Dense, Float8Groups, Int4Groups, Int8Groups, Layout
from octavo.kernels.triton.backend import TritonOps

ROWS = (1, 4, 16, 64, 256)
GROUP = 32
FORMS: dict[str, tuple[Callable[[int, int, torch.device], Layout], float]] = {
    "bf16": (lambda n, k, device: Dense(normal(n, k, device=device)), 2.0),
    "W8A16": (
        lambda n, k, device: Int8Groups(
            torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device),
            normal(n, k // GROUP, device=device, dtype=torch.float16) / 128,
        ),
        1 + 2 / GROUP,
    ),
    "W4A16": (
        lambda n, k, device: Int4Groups(
            torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device=device),
            normal(n, k // GROUP, device=device, dtype=torch.float16) / 8,
            normal(n, k // GROUP, device=device, dtype=torch.float16),
        ),
        0.5 + 4 / GROUP,
    ),
    "fp8": (
        lambda n, k, device: Float8Groups(
            normal(n, k, device=device).to(torch.float8_e4m3fn), 1 + torch.rand(n, k // min(128, k), device=device)
        ),
        1 + 4 / 128,
    ),
}
"""How to make a weight, and its bytes a number."""
GOALS = {
    ("bf16", 1): "85% of copy bandwidth",
    ("W4A16", 1): "70% of copy bandwidth",
    ("W8A16", 1): "80% of copy bandwidth",
    ("W4A16", 64): "1.5 x the bf16 product",
}


def cases(model: Model, rows: tuple[int, ...] = ROWS) -> Iterator[Case]:
    for matrix, (n, k) in model.matrices.items():
        for m in rows:
            for form in FORMS:
                goal = GOALS.get((form, m))
                wide = matrix in ("gate-up", "qkv")
                yield Case(
                    "linear", model.name, m, int(n * k * FORMS[form][1]) + 2 * m * (n + k), _maker(form, m, n, k),
                    2 * m * n * k, what=f"{form} {matrix}", tolerance=1e-2, goal=goal,
                    priority=0 if goal and matrix == "gate-up" else 1 if wide else 2,
                    bound="copy" if m < 256 else "matmul",
                )  # fmt: skip


def launched(form: str, m: int, dtype: torch.dtype) -> Case:
    """Of a type beside the check's, to be compiled alone."""
    return Case("linear", "4096 x 4096", m, 0, _maker(form, m, 4096, 4096, dtype), what=f"{form} {str(dtype)[6:]}")


def _maker(form: str, m: int, n: int, k: int, dtype: torch.dtype = BF16) -> Callable[[torch.device], Call]:
    def make(device: torch.device) -> Call:
        ops = TritonOps(dtype, dtype, device)
        weight, x = ops.prepare([FORMS[form][0](n, k, device)]), normal(m, k, device=device, dtype=dtype)
        held: list[torch.Tensor] = []

        def eager() -> object:
            """The bf16 product of this shape: what a quantized weight is held against."""
            if not held:
                held.append(weight.dequantize(BF16))
            return F.linear(x, held[0])

        def error() -> float:
            return relative(ops.linear(x, weight), x.float() @ weight.dequantize(torch.float32).T)

        return Call(lambda: ops.linear(x, weight), eager, error)

    return make
