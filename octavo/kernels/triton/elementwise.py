"""Element-wise expressions: one kernel, whose code is the expression. Compiled once for each expression and number of
features; every input is read once and nothing between is written. Bound by memory.

The instructions are a compile-time constant, so the loops over them are unrolled and leave nothing but the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels import expression as expressions
from octavo.kernels.expression import Expression
from octavo.kernels.triton.launch import check_device

_BLOCK = 1024


@triton.jit
def _tanh(x):
    """A polynomial near 0 (Cephes), where 1 - 2 / (e^2x + 1) has no digits left."""
    z = x * x
    p = (((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z
    p = (p - 3.33332819422e-1) * z * x + x
    far = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(tl.abs(x) > 0.625, tl.where(x < 0.0, -far, far), p)


@triton.jit
def _log1p(x):
    """log(u) * x / (u - 1) for u = 1 + x as it is rounded (Goldberg 1991)."""
    u = 1.0 + x
    less = u - 1.0
    found = tl.log(u) * (x / tl.where(less == 0.0, 1.0, less))
    return tl.where(less == 0.0, x, tl.where(x == float("inf"), x, found))


@triton.jit
def _apply(FUNCTION: tl.constexpr, a, b):
    if FUNCTION == "add":
        value = a + b
    elif FUNCTION == "sub":
        value = a - b
    elif FUNCTION == "mul":
        value = a * b
    elif FUNCTION == "div":
        value = a / b
    elif FUNCTION == "min":
        value = tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
    elif FUNCTION == "max":
        value = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    elif FUNCTION == "neg":
        value = -a
    elif FUNCTION == "abs":
        value = tl.abs(a)
    elif FUNCTION == "exp":
        value = tl.exp(a)
    elif FUNCTION == "log1p":
        value = _log1p(a)
    elif FUNCTION == "tanh":
        value = _tanh(a)
    elif FUNCTION == "sigmoid":
        value = 1.0 / (1.0 + tl.exp(-a))
    elif FUNCTION == "erf":
        value = tl.erf(a)
    else:
        tl.static_assert(FUNCTION == "sqrt")
        value = tl.sqrt(a)
    return value


@triton.jit
def _elementwise_kernel(
    inputs, strides, out, n, SINGLE: tl.constexpr, SCALARS: tl.constexpr, STEPS: tl.constexpr, RESULT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """STEPS: (function, operand, operand), operands counted over inputs, scalars and the results of earlier steps."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n
    values = ()  # Triton's tuples have no unpacking
    for i in tl.static_range(len(inputs)):
        at = inputs[i] + row * strides[i]
        if SINGLE[i]:
            values = values + (tl.zeros([BLOCK], tl.float32) + tl.load(at).to(tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
        else:
            values = values + (tl.load(at + columns, mask=inside, other=0.0).to(tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    for i in tl.static_range(len(SCALARS)):
        values = values + (tl.full([BLOCK], SCALARS[i], tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    for i in tl.static_range(len(STEPS)):
        values = values + (_apply(STEPS[i][0], values[STEPS[i][1]], values[STEPS[i][2]]),)  # type: ignore[assignment]  # noqa: RUF005
    tl.store(out + row * n + columns, values[RESULT].to(out.dtype.element_ty), mask=inside)


def elementwise(expression: Expression, inputs: Sequence[Tensor], dtype: torch.dtype | None = None) -> Tensor:
    """See Ops.elementwise. Rows of inputs are contiguous, any distance apart."""
    expressions.check(expression, inputs)
    check_device(*inputs)
    first, n = next(x for x in inputs if x.dim() == 2), expressions.width(inputs)
    out = torch.empty((first.shape[0], n), dtype=first.dtype if dtype is None else dtype, device=first.device)
    if not out.numel():
        return out
    read = tuple(x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous() for x in inputs)
    strides = tuple(x.stride(0) if x.dim() == 2 else 0 for x in read)
    single = tuple(x.shape[-1] == 1 for x in read)
    code = expressions.instructions(expression)
    where = {code.first_register + step.register: -1 for step in code.steps}
    steps = []
    for number, step in enumerate(code.steps):  # registers become the steps whose results they hold
        a, b = (where.get(operand, operand) for operand in (step.arguments[0], step.arguments[-1]))
        steps.append((step.function, a, b))
        where[code.first_register + step.register] = code.first_register + number
    result = where.get(code.result, code.result)
    _elementwise_kernel[(out.shape[0], triton.cdiv(n, _BLOCK))](
        read, strides, out, n, single, code.scalars, tuple(steps), result, BLOCK=_BLOCK, num_warps=4
    )
    return out
