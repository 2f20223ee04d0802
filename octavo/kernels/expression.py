"""Element-wise expressions: scalings, gates, soft caps, activations. One kind of operation (`Ops.elementwise`) computes
any of them, so that a new activation is an expression and no new kernel.

An expression is a frozen tree over inputs and scalars, written with Python's operators and the functions below:

    gate, up = Input(0), Input(1)
    GEGLU = gelu_tanh(gate) * up

It holds no tensors, so it can be compared and be the key of what is made from it. `evaluate` says what it means;
`instructions` is the same as straight-line code, for kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

MOST_INPUTS = 8
MOST_SCALARS = 16
MOST_REGISTERS = 16
"""Intermediate results alive at once."""

FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "min": torch.minimum,
    "max": torch.maximum,
    "neg": torch.neg,
    "abs": torch.abs,
    "exp": torch.exp,
    "log1p": torch.log1p,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "erf": torch.erf,
    "sqrt": torch.sqrt,
}
"""What kernels know; everything else is put together from these. In the order of csrc/kernels.h's Function. The first
six take two arguments; where one is not a number, neither is the result."""

_BINARY = 6


class Expression:
    """`+ - * /` and unary `-` make larger ones; numbers become scalars."""

    def __add__(self, other: Expression | float) -> Expression:
        return Apply("add", (self, of(other)))

    def __radd__(self, other: float) -> Expression:
        return Apply("add", (of(other), self))

    def __sub__(self, other: Expression | float) -> Expression:
        return Apply("sub", (self, of(other)))

    def __rsub__(self, other: float) -> Expression:
        return Apply("sub", (of(other), self))

    def __mul__(self, other: Expression | float) -> Expression:
        return Apply("mul", (self, of(other)))

    def __rmul__(self, other: float) -> Expression:
        return Apply("mul", (of(other), self))

    def __truediv__(self, other: Expression | float) -> Expression:
        return Apply("div", (self, of(other)))

    def __rtruediv__(self, other: float) -> Expression:
        return Apply("div", (of(other), self))

    def __neg__(self) -> Expression:
        return Apply("neg", (self,))


@dataclass(frozen=True)
class Input(Expression):
    """The operation's input of this number."""

    index: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < MOST_INPUTS:
            raise ValueError(f"input {self.index}: an expression has inputs 0 to {MOST_INPUTS - 1}")


@dataclass(frozen=True)
class Scalar(Expression):
    """A number, taken as f32."""

    value: float


@dataclass(frozen=True)
class Apply(Expression):
    function: str
    arguments: tuple[Expression, ...]

    def __post_init__(self) -> None:
        if self.function not in FUNCTIONS:
            raise ValueError(f"no function {self.function!r}; there are {', '.join(FUNCTIONS)}")
        wanted = 2 if list(FUNCTIONS).index(self.function) < _BINARY else 1
        if len(self.arguments) != wanted:
            raise ValueError(f"{self.function} takes {wanted} arguments, not {len(self.arguments)}")


def of(value: Expression | float) -> Expression:
    return value if isinstance(value, Expression) else Scalar(float(value))


# --- functions put together from those that kernels know


def minimum(a: Expression | float, b: Expression | float) -> Expression:
    return Apply("min", (of(a), of(b)))


def maximum(a: Expression | float, b: Expression | float) -> Expression:
    return Apply("max", (of(a), of(b)))


def clamp(x: Expression, low: float | None = None, high: float | None = None) -> Expression:
    x = x if low is None else maximum(x, low)
    return x if high is None else minimum(x, high)


def exp(x: Expression) -> Expression:
    return Apply("exp", (x,))


def tanh(x: Expression) -> Expression:
    return Apply("tanh", (x,))


def sigmoid(x: Expression) -> Expression:
    return Apply("sigmoid", (x,))


def sqrt(x: Expression) -> Expression:
    return Apply("sqrt", (x,))


def square(x: Expression) -> Expression:
    return x * x


def relu(x: Expression) -> Expression:
    return maximum(x, 0.0)


def silu(x: Expression) -> Expression:
    return x * sigmoid(x)


def gelu_tanh(x: Expression) -> Expression:
    """x / 2 * (1 + tanh(u)), which is x * sigmoid(2 u). Hendrycks and Gimpel 2016, arXiv:1606.08415."""
    return x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x)))


def gelu_erf(x: Expression) -> Expression:
    return 0.5 * x * (1 + Apply("erf", (x * math.sqrt(0.5),)))


def softplus(x: Expression) -> Expression:
    """log(1 + e^x), without overflow."""
    return maximum(x, 0.0) + Apply("log1p", (exp(-Apply("abs", (x,))),))


def soft_cap(x: Expression, cap: float) -> Expression:
    return cap * tanh(x / cap)


# --- what it means


def width(inputs: Sequence[Tensor]) -> int:
    """Features of the result. Inputs are [tokens, n] or [tokens, 1], or [n], the same for each token; raises ValueError
    when they are not."""
    n = max((x.shape[-1] for x in inputs if x.dim() in (1, 2)), default=0)
    rows = {x.shape[0] for x in inputs if x.dim() == 2}
    if len(rows) != 1 or any(x.dim() not in (1, 2) or x.shape[-1] not in (1, n) for x in inputs):
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ValueError(
            f"inputs of shapes {shapes}; they must be [tokens, n], [tokens, 1] or [n], one at least over tokens"
        )
    return n


def evaluate(expression: Expression, inputs: Sequence[Tensor], dtype: torch.dtype | None = None) -> Tensor:
    """See Ops.elementwise."""
    check(expression, inputs)
    first = next(x for x in inputs if x.dim() == 2)
    found: dict[Expression, Tensor] = {}

    def value(part: Expression) -> Tensor:
        if part not in found:
            if isinstance(part, Input):
                found[part] = inputs[part.index].float()
            elif isinstance(part, Scalar):
                found[part] = torch.tensor(part.value, dtype=torch.float32, device=first.device)
            else:
                assert isinstance(part, Apply)
                found[part] = FUNCTIONS[part.function](*map(value, part.arguments))
        return found[part]

    shape = first.shape[0], width(inputs)
    return value(expression).expand(shape).to(first.dtype if dtype is None else dtype, copy=True).contiguous()


def check(expression: Expression, inputs: Sequence[Tensor]) -> None:
    """Raises ValueError unless the expression reads all of these inputs and no others."""
    width(inputs)
    if instructions(expression).inputs != tuple(range(len(inputs))):
        raise ValueError(f"{len(inputs)} inputs for an expression of inputs {instructions(expression).inputs}")


# --- the same as straight-line code


@dataclass(frozen=True)
class Instruction:
    """Arguments, and the result of the whole, are operands: first inputs, then scalars, then registers."""

    function: str
    arguments: tuple[int, ...]
    register: int


@dataclass(frozen=True)
class Instructions:
    inputs: tuple[int, ...]
    scalars: tuple[float, ...]
    steps: tuple[Instruction, ...]
    result: int

    @property
    def first_register(self) -> int:
        return len(self.inputs) + len(self.scalars)


@cache
def instructions(expression: Expression) -> Instructions:
    """Each different part is computed once; a register is taken again once its last reader has it. Raises ValueError
    for an expression that is too large."""
    order: list[Apply] = []
    inputs: set[int] = set()
    scalars: dict[float, int] = {}
    last: dict[Expression, int] = {}

    def visit(part: Expression) -> None:
        if isinstance(part, Input):
            inputs.add(part.index)
        elif isinstance(part, Scalar):
            scalars.setdefault(part.value, len(scalars))
        elif isinstance(part, Apply) and part not in last:
            for argument in part.arguments:
                visit(argument)
            last[part] = len(order)
            order.append(part)
            last.update(dict.fromkeys(part.arguments, len(order) - 1))

    visit(expression)
    if len(scalars) > MOST_SCALARS:
        raise ValueError(f"an expression of {len(scalars)} scalars; kernels take {MOST_SCALARS}")
    places: dict[Expression, int] = {Input(index): place for place, index in enumerate(sorted(inputs))}
    places.update({Scalar(value): len(inputs) + place for value, place in scalars.items()})
    steps = _placed(order, places, last, len(inputs) + len(scalars))
    return Instructions(tuple(sorted(inputs)), tuple(scalars), steps, places[expression])


def _placed(
    order: Sequence[Apply], places: dict[Expression, int], last: dict[Expression, int], first: int
) -> tuple[Instruction, ...]:
    """`places` learns where the parts are."""
    free = list(range(MOST_REGISTERS - 1, -1, -1))
    steps = []
    for at, part in enumerate(order):
        arguments = tuple(places[argument] for argument in part.arguments)
        for argument in dict.fromkeys(part.arguments):
            if last[argument] == at and places[argument] >= first:
                free.append(places[argument] - first)
        if not free:
            raise ValueError(f"an expression with more than {MOST_REGISTERS} intermediate results at once")
        places[part] = first + free.pop()
        steps.append(Instruction(part.function, arguments, places[part] - first))
    return tuple(steps)
