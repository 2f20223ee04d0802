"""Cases of a mixture of experts: the choice of experts, and their products with only the tokens that chose them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from case import BF16, F32, Call, Case, Model, normal, relative
from products import FORMS
from torch import Tensor

from octavo.kernels.layouts import Dense, Prepared
from octavo.kernels.reference import activation as reference_activation
from octavo.kernels.reference import moe as reference
from octavo.kernels.triton.backend import TritonOps

ROWS = (1, 16, 64, 256, 2048)
CHECKED = 4


def cases(model: Model, rows: tuple[int, ...] = ROWS) -> Iterator[Case]:
    if not model.experts:
        return
    experts, k = model.experts, model.per_token
    for n in rows:
        nbytes = 4 * n * experts + 8 * n * k
        yield Case("route", model.name, n, nbytes, _router(n, experts, k), tolerance=1e-5, priority=2)
        touched = experts * (1 - (1 - k / experts) ** n)  # of random choices
        numbers = 3 * model.inner * model.hidden
        for form in ("bf16", "W8A16", "W4A16"):
            yield Case(
                "experts", model.name, n, int(touched * numbers * FORMS[form][1]) + 4 * n * model.hidden,
                _maker(model, n, form), 2 * n * k * numbers, what=form, tolerance=2e-2,
                priority=1 if n in (1, 64) else 2, bound="copy" if n <= 256 else "matmul",
            )  # fmt: skip


def _router(rows: int, experts: int, k: int) -> Callable[[torch.device], Call]:
    def make(device: torch.device) -> Call:
        ops, logits = TritonOps(BF16, BF16, device), normal(rows, experts, device=device, dtype=F32)

        def eager() -> object:
            shares, ids = logits.softmax(-1).topk(k, dim=-1)
            return shares / shares.sum(-1, keepdim=True), ids.int()

        def error() -> float:
            weights, ids = ops.route(logits, k, True)
            wanted, wanted_ids = reference.route(logits, k, True)
            return relative(weights, wanted) + float(ids.ne(wanted_ids).sum())

        return Call(lambda: ops.route(logits, k, True), eager, error)

    return make


def _linear(x: Tensor, weight: Prepared) -> Tensor:
    assert isinstance(weight, Dense)
    return F.linear(x, weight.data)


def _maker(model: Model, rows: int, form: str) -> Callable[[torch.device], Call]:
    def make(device: torch.device) -> Call:
        ops, weight = TritonOps(BF16, BF16, device), FORMS[form][0]
        gate_up = ops.prepare_experts([[weight(2 * model.inner, model.hidden, device)] for _ in range(model.experts)])
        down = ops.prepare_experts([[weight(model.hidden, model.inner, device)] for _ in range(model.experts)])
        x = normal(rows, model.hidden, device=device)
        routed = ops.route(normal(rows, model.experts, device=device, dtype=F32), model.per_token, True)
        dense: list[reference.ListedExperts] = []

        def eager() -> object:
            """One bf16 product after the other, for each expert that has tokens: it reads back which."""
            for prepared in (gate_up, down) if not dense else ():
                matrices = prepared.dequantize(BF16)
                dense.append(reference.ListedExperts(tuple(Dense(matrix) for matrix in matrices)))
            return reference.experts(x, routed, *dense, _linear, reference_activation.silu_mul)

        def error() -> float:
            found, (first, second) = ops.experts(x, *routed, gate_up, down), (gate_up, down)
            wide, narrow = first.dequantize(F32), second.dequantize(F32)
            worst = 0.0
            for token in range(0, rows, max(rows // CHECKED, 1)):
                exact = torch.zeros(model.hidden, device=device)
                for share, expert in zip(routed[0][token], routed[1][token].tolist(), strict=True):
                    inner = reference_activation.silu_mul((wide[expert] @ x[token].float())[None])[0]
                    exact += share * (narrow[expert] @ inner)
                worst = max(worst, relative(found[token], exact))
            return worst

        return Call(lambda: ops.experts(x, *routed, gate_up, down), eager, error)

    return make
