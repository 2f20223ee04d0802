"""The Jinja environment that chat templates run in: what Transformers offers them, plus a budget. Used by template.py.

Templates are code from a model's author. They run in Jinja's immutable sandbox; loops and macros pay for every turn and
whatever can grow a value is checked before it does, so that a hostile template ends in BudgetExceeded within seconds
instead of taking the server's time and memory. Invariant: a template within the budget renders the same bytes as it
would in Transformers.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

CPU_SECONDS = 2.0
TRIAL_SECONDS = 0.2
"""For a few messages of a few words."""
MAX_CHARS = 1 << 24
MAX_NUMBER_BITS = 1 << 14


class BudgetExceeded(SecurityError):
    """The template took too long or made too much."""


class Budget:
    """What one rendering may still use. `max_chars`: of all text put out, also inside blocks that are set or called."""

    def __init__(self, max_chars: int, marks: str = "", seconds: float | None = None) -> None:
        self.max_chars = max_chars
        self.marks = marks
        self._chars = 0
        self._seconds = CPU_SECONDS if seconds is None else seconds
        self._deadline = time.thread_time() + self._seconds

    def tick(self) -> None:
        if time.thread_time() > self._deadline:
            raise BudgetExceeded(f"the chat template took more than {self._seconds:g} s")

    def emit(self, chars: int) -> None:
        self._chars += chars
        self.check(self._chars)
        self.tick()

    def check(self, chars: int) -> None:
        if chars > self.max_chars:
            raise BudgetExceeded(f"the chat template makes more than {self.max_chars} characters")


class _Active(threading.local):
    budget: Budget | None = None


_active = _Active()


def render(template: jinja2.Template, budget: Budget, variables: dict[str, Any]) -> str:
    """Render within the budget. Raises whatever the template raises."""
    _active.budget = budget
    try:
        return template.render(variables)
    finally:
        _active.budget = None


def size_of(value: Any) -> int:
    """Characters and members in a value; stops beyond the budget, since a list may hold another one many times over."""
    limit = _limit()
    total, turns, stack = 0, 0, [value]
    while stack and total <= limit:
        item = stack.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            total += len(item)
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set, frozenset)):
            total += len(item)
            stack += item
        else:
            total += 8
        turns += 1
        if turns % 4096 == 0 and _active.budget is not None:
            _active.budget.tick()
    return total


def _limit() -> int:
    return MAX_CHARS if _active.budget is None else _active.budget.max_chars


class _Guarded(NodeTransformer):
    """Makes every loop turn, macro call and `~` pass through the environment's budget."""

    def __init__(self, environment: jinja2.Environment) -> None:
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._pay(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._pay(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("guarded_concat", node.nodes, node.lineno)

    def _pay(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        tick = nodes.ExprStmt(self._call("guarded_tick", [], node.lineno))
        node.body.insert(0, tick.set_lineno(node.lineno).set_environment(self._environment))
        return node  # type: ignore[no-any-return]

    def _call(self, method: str, arguments: list[nodes.Expr], lineno: int) -> nodes.Call:
        call = nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)
        call.set_lineno(lineno).set_environment(self._environment)
        return call


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Transformers' environment for chat templates: same options, extensions, filters and globals."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols], finalize=_count_output
        )
        self.filters["tojson"] = _tojson
        for name in ("replace", "join", "format", "center", "indent", "wordwrap", "batch", "slice", "string", "pprint"):
            self.filters[name] = _guarded_filter(name, self.filters[name])
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["dict"] = _Dict()
        self.globals["namespace"] = _PlainNamespace

    def compile_chat(self, source: str) -> jinja2.Template:
        """The template with its loops guarded. Raises jinja2.TemplateError."""
        tree = _Guarded(self).visit(self.parse(source))
        return self.from_string(tree)

    def guarded_tick(self) -> None:
        if _active.budget is not None:
            _active.budget.tick()

    def guarded_concat(self, *values: Any) -> str:
        _check_size(size_of(values))
        return "".join(map(str, values))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_binop(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)
        if isinstance(subject := getattr(method, "__self__", None), str):
            if method.__name__ == "join" and args:
                args = (_sized(args[0]), *args[1:])
                _check_join(args[0], subject)
            _check_growth(method.__name__, subject, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)


class _GenerationBlocks(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training; here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_show"), [], [], body).set_lineno(lineno)

    def _show(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` without the type itself, whose attributes lead out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _PlainNamespace(Namespace):
    """A namespace that takes no private names."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *values = args
        attributes = dict(*values, **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        Namespace.__setitem__(self, name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template cannot store the private attribute {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    size = size_of(value)
    width = indent if isinstance(indent, int) else len(indent or "")
    _check_size(size * (1 + max(width, 0)))
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if ensure_ascii and _active.budget is not None:
        # Marks stay single characters, so that they can be found and taken out of the rendered text.
        for mark in _active.budget.marks:
            text = text.replace(json.dumps(mark)[1:-1], mark)
    return text


def _count_output(value: Any) -> Any:
    """Jinja's finalize hook: sees everything that `{{ }}` shows, before it becomes text."""
    if (budget := _active.budget) is not None:
        budget.emit(len(value) if isinstance(value, str) else size_of(value))
    return value


def _guarded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    # Filters that want the environment or context get it as first argument, marked by this attribute of Jinja's.
    passes = getattr(function, "jinja_pass_arg", None)

    def guarded(*args: Any, **kwargs: Any) -> Any:
        position = 0 if passes is None else 1
        if len(args) > position:
            value = args[position]
            if name == "join":
                value = _sized(value)
                args = (*args[:position], value, *args[position + 1 :])
                _check_join(value, "".join(v for v in (*args[position + 1 :], *kwargs.values()) if isinstance(v, str)))
            _check_growth(name, value, args[position + 1 :], kwargs)
        return function(*args, **kwargs)

    if passes is not None:
        guarded.jinja_pass_arg = passes  # type: ignore[attr-defined]
    return guarded


def _check_size(size: int) -> None:
    limit = _limit()
    if size > limit:
        raise BudgetExceeded(f"the chat template makes a value of more than {limit} characters")


def _check_binop(operator: str, left: Any, right: Any) -> None:
    sized = (str, list, tuple)
    if operator == "+" and isinstance(left, sized) and isinstance(right, sized):
        _check_size(len(left) + len(right))
    elif operator == "*":
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, sized) and isinstance(times, int):
                _check_size(len(sequence) * times)
        _check_bits(left, right, lambda a, b: a.bit_length() + b.bit_length())
    elif operator == "**":
        _check_bits(left, right, lambda a, b: a.bit_length() * abs(b))
    elif operator == "%" and isinstance(left, str):
        _check_size(_formatted_size(left, right))


def _check_bits(left: Any, right: Any, bits: Callable[[int, int], int]) -> None:
    if isinstance(left, int) and isinstance(right, int) and bits(left, right) > MAX_NUMBER_BITS:
        raise BudgetExceeded("the chat template computes a number that is too large")


def _check_growth(name: str, subject: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a call of a string method or filter whose result would be too long, before it is made."""
    values = [*args, *kwargs.values()]
    count = max((abs(v) for v in values if isinstance(v, int)), default=0)
    texts = [len(v) for v in values if isinstance(v, str)]
    length = len(subject) if isinstance(subject, (str, list, tuple, dict)) else 0
    if name in ("center", "ljust", "rjust", "zfill", "batch", "slice"):
        _check_size(length + count)
    elif name in ("expandtabs", "indent", "wordwrap"):
        _check_size((length + 1) * (1 + (count if name != "wordwrap" else 0) + max(texts, default=0)))
    elif name == "replace" and len(args) > 1 and isinstance(subject, str):
        _check_size(length + subject.count(str(args[0])) * len(str(args[1])))
    elif name in ("format", "format_map"):
        _check_size(_formatted_size(str(subject), values))
    elif name in ("string", "pprint"):
        _check_size(size_of(subject))


def _sized(value: Any) -> Any:
    """What is to be joined, as something that can be counted."""
    return value if isinstance(value, (str, list, tuple, dict)) else list(value)


def _check_join(members: Any, separator: str) -> None:
    _check_size(size_of(members) + len(members) * len(separator))


def _formatted_size(pattern: str, values: Any) -> int:
    fields = pattern.count("%") + pattern.count("{") + 1
    numbers = [int(digits) if len(digits) < 12 else 10**12 for digits in re.findall(r"\d+", pattern)]
    if "*" in pattern or re.search(r"\{[^{}]*\{", pattern):
        # A width or precision that is itself a value
        members = values if isinstance(values, (list, tuple)) else [values]
        numbers += [abs(v) for v in members if isinstance(v, int)]
    return len(pattern) + fields * (max(numbers, default=0) + size_of(values))
