"""Element-wise expressions on every backend: random ones against f64 within the error that rounding explains, each
function over all of its range, and what else their rows promise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_backends import NATIVE, ops
from test_reference import randn
from torch import Tensor

from octavo.kernels import expression as ex
from octavo.kernels.expression import Apply, Expression, Input, Scalar
from octavo.kernels.layouts import Dense
from octavo.kernels.ops import Ops
from octavo.kernels.reference.backend import ReferenceOps

__all__ = ["ops"]  # the fixture: each backend in turn

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes lanes that a GPU masks out
F32, F64 = torch.float32, torch.float64
UNIT = 8 * 2**-24
"""What one function may be off, of its value."""

A, B, C = Input(0), Input(1), Input(2)
NAMED = {
    "GEGLU": ex.gelu_tanh(A) * B,
    "exact GEGLU": ex.gelu_erf(A) * B,
    "output gate": A * ex.sigmoid(B),
    "scaled": A * 3.5,
    "soft cap": ex.soft_cap(A, 30.0),
    "clamped SwiGLU": (ex.clamp(B, -7.0, 7.0) + 1) * (ex.minimum(A, 7.0) * ex.sigmoid(1.702 * ex.minimum(A, 7.0))),
    "squared relu": ex.square(ex.relu(A)),
    "decay": -ex.exp(A) * ex.softplus(B),
    "as it is": A,
}


class Exact:
    """Values in f64, and by how much a computation in f32 may be off."""

    def __init__(self, inputs: list[Tensor]) -> None:
        self.inputs = [x.double() for x in inputs]

    def of(self, part: Expression) -> tuple[Tensor, Tensor]:
        if isinstance(part, Input):
            return self.inputs[part.index], torch.zeros((), dtype=F64)
        if isinstance(part, Scalar):
            value = torch.tensor(part.value, dtype=F64)
            return value, value.abs() * 2**-24
        assert isinstance(part, Apply)
        found = [self.of(argument) for argument in part.arguments]
        values, errors = [value for value, _ in found], [error for _, error in found]
        value = ex.FUNCTIONS[part.function](*values)
        return value, self.moved(part.function, value, values, errors) + UNIT * value.abs() + 1e-37

    def moved(self, function: str, value: Tensor, values: list[Tensor], errors: list[Tensor]) -> Tensor:
        """By what is wrong with the arguments."""
        a, e = values[0], errors[0]
        b, f = values[-1], errors[-1]
        if function in ("add", "sub", "min", "max"):
            return e + f
        if function == "mul":
            return a.abs() * f + b.abs() * e + e * f
        if function == "div":
            return torch.where(b.abs() > 2 * f, 2 * (e + value.abs() * f) / b.abs(), math.inf)
        if function == "exp":
            return value * e.clamp(max=1e30).expm1()
        if function == "sqrt":
            return torch.where(a > 2 * e, e / value, (2 * e).sqrt())
        return e * 2 / (1 + a - e).clamp(min=1e-30) if function == "log1p" else e * 1.2


def agree(found: Tensor, expression: Expression, inputs: list[Tensor]) -> None:
    value, error = Exact(inputs).of(expression)
    value, error = value.expand(found.shape), error.expand(found.shape)
    sure = error.isfinite() & (value.abs() + error < torch.finfo(F32).max)
    assert ((found.double() - value).abs() <= error)[sure].all()


leaves = st.one_of(st.sampled_from([A, B, C]), st.floats(-3, 3, width=32).map(Scalar))


def larger(parts: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    ones = [
        ex.exp, ex.tanh, ex.sigmoid, ex.silu, ex.gelu_tanh, ex.gelu_erf, ex.relu, ex.softplus, ex.square,
        lambda x: -x, lambda x: Apply("abs", (x,)), lambda x: ex.sqrt(ex.square(x) + 0.5), lambda x: ex.clamp(x, -1, 2),
    ]  # fmt: skip
    twos = [
        lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y, lambda x, y: x / (ex.square(y) + 0.5),
        ex.minimum, ex.maximum,
    ]  # fmt: skip
    one = st.builds(lambda make, x: make(x), st.sampled_from(ones), parts)
    return one | st.builds(lambda make, x, y: make(x, y), st.sampled_from(twos), parts, parts)


expressions = st.recursive(leaves, larger, max_leaves=6)


@settings(max_examples=40, deadline=None)
@given(expression=expressions, tokens=st.integers(1, 9), n=st.integers(1, 300), seed=st.integers(0, 99))
def test_random_expressions(ops: Ops, expression: Expression, tokens: int, n: int, seed: int) -> None:
    expression = expression + A * 0.5 + B * C  # all inputs are read: one each of the three kinds
    inputs = [2 * randn(tokens, n, seed=seed), randn(tokens, 1, seed=seed + 1), randn(n, seed=seed + 2)]
    try:
        ex.instructions(expression)
    except ValueError:  # more scalars than kernels take
        return
    found = ops.elementwise(expression, *inputs)
    assert found.dtype == F32 and found.shape == (tokens, n) and found.is_contiguous()
    agree(found, expression, inputs)


@pytest.mark.parametrize("name", NAMED)
def test_named_expressions(ops: Ops, name: str) -> None:
    """Of the two halves of one wider value."""
    expression = NAMED[name]
    both = 6 * randn(5, 2 * 97, seed=3)
    inputs = list(both.chunk(2, dim=1))[: len(ex.instructions(expression).inputs)]
    agree(ops.elementwise(expression, *inputs), expression, inputs)
    assert ops.elementwise(expression, *(x[:0] for x in inputs)).shape == (0, 97)


GRID = torch.cat([torch.linspace(-100, 100, 4001), torch.logspace(-30, 30, 500), -torch.logspace(-30, 30, 500)])


@pytest.mark.parametrize("function", list(ex.FUNCTIONS)[6:])
def test_functions_over_their_range(ops: Ops, function: str) -> None:
    x = GRID[None]
    if function == "log1p":
        x = torch.cat([x[x > -1], -1 + torch.logspace(-6, -0.1, 200)])[None]
    elif function == "sqrt":
        x = x.abs()
    found, exact = ops.elementwise(Apply(function, (A,)), x)[0], ex.FUNCTIONS[function](x.double())[0]
    known = exact.abs() < torch.finfo(F32).max
    # Of what is below normal numbers nothing is asked; erf is 1 less something.
    near = (found.double() - exact).abs() <= 3e-7 * exact.abs().clamp(min=1e-37) + 1e-37
    assert near[known].all()
    assert (found[~known] == exact[~known].float()).all()


def test_what_is_not_a_number_stays_none(ops: Ops) -> None:
    odd = torch.tensor([[math.nan, math.inf, -math.inf]])
    for function in list(ex.FUNCTIONS)[6:]:
        found = ops.elementwise(Apply(function, (A,)), odd)
        assert torch.equal(found.isnan(), ex.FUNCTIONS[function](odd).isnan()), function
        if function not in ("sqrt", "log1p"):
            assert torch.allclose(found[0, 1:], ex.FUNCTIONS[function](odd)[0, 1:]), function
    for function in list(ex.FUNCTIONS)[:6]:
        for inputs in ((odd, torch.ones(1, 3)), (torch.ones(1, 3), odd)):
            found = ops.elementwise(Apply(function, (A, B)), *inputs)
            assert torch.equal(found.isnan(), ex.FUNCTIONS[function](*inputs).isnan()), function


def test_other_shapes_are_refused(ops: Ops) -> None:
    x = randn(3, 8)
    for inputs in ((x, randn(3, 7)), (x, randn(2, 8)), (x, x.view(3, 2, 4)), (randn(8), randn(8)), (x,), (x, x, x)):
        with pytest.raises(ValueError):
            ops.elementwise(A + B, *inputs)


def test_the_reference_rounds_once() -> None:
    ops, x = ReferenceOps(torch.bfloat16), randn(3, 40).bfloat16()
    wanted = (x.double().tanh() * 30 + x.double()).float()
    assert torch.equal(ops.elementwise(ex.tanh(A) * 30 + A, x), wanted.bfloat16())
    assert ops.elementwise(ex.tanh(A) * 30 + A, x, dtype=F32).dtype == F32


def test_what_kernels_cannot_hold_is_said() -> None:
    with pytest.raises(ValueError, match="17 scalars"):
        ex.instructions(sum((A * float(i) for i in range(16)), A * 99.0))
    with pytest.raises(ValueError, match="input 8"):
        Input(8)
    with pytest.raises(ValueError, match="sin"):
        Apply("sin", (A,))
    with pytest.raises(ValueError, match="add takes 2"):
        Apply("add", (A,))

    def full(depth: int) -> Expression:  # keeps a result for each level until the end
        part = (ex.exp, ex.tanh)[depth % 2](A * float(depth // 2 + 1))
        return part if depth == 0 else part * full(depth - 1)

    with pytest.raises(ValueError, match="16 intermediate"):
        ex.instructions(full(17))


def test_equal_parts_are_computed_once() -> None:
    code = ex.instructions(ex.silu(A * 2.0) + ex.silu(A * 2.0))
    assert [step.function for step in code.steps] == ["mul", "sigmoid", "mul", "add"] and code.scalars == (2.0,)


if NATIVE:
    from native_rows import FORMATS, Rows, address, run

    from octavo.kernels.cpu.backend import CpuOps, known_isas

    @pytest.mark.parametrize("isa", known_isas())
    @pytest.mark.parametrize("format", FORMATS, ids=FORMATS.values())
    @pytest.mark.parametrize("k", [1, 31, 77, 288, 600])
    def test_rows_are_written_as_products_take_them(isa: str, format: int, k: int) -> None:
        x = (3 * randn(7, 2 * k)).numpy()
        out, plain = Rows(7, k, format), Rows(7, k, 0)
        inputs = [(address(x), 2 * k, False), (address(x) + 4 * k, 2 * k, False)]
        code = [(11, 0, 0, 0), (2, 1, 3, 0)]  # over inputs 0 and 1, a scalar, then registers: sigmoid(a), b * that
        for rows in (out, plain):
            run(isa, 7, lambda p, r=rows: p.elementwise(inputs, [1.0], code, 3, k, r.address, r.format), threads=2)  # type: ignore[misc]
        assert (out.bytes == Rows.of(isa, plain.values(), format).bytes).all()

    @pytest.mark.parametrize("isa", known_isas())
    def test_a_row_is_the_same_in_any_company(isa: str) -> None:
        ops, x = CpuOps(F32, "float32", isa, 3), randn(500, 2 * 77)
        whole = ops.elementwise(NAMED["GEGLU"], *x.chunk(2, 1))
        for row in (0, 1, 250, 499):
            assert torch.equal(ops.elementwise(NAMED["GEGLU"], *x[row : row + 1].chunk(2, 1)), whole[row : row + 1])

    def test_a_column_range_can_be_multiplied() -> None:
        ops, x = CpuOps(F32, "float32", known_isas()[0], 2), randn(5, 96)
        weight = ops.prepare([Dense(randn(8, 32))])
        assert torch.equal(ops.linear(x[:, 32:64], weight), ops.linear(x[:, 32:64].contiguous(), weight))
