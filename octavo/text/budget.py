"""What one rendering of a chat template may use: time, text put out, text made on the way. Checked before it is spent.

Templates are code from a model's author. Whatever can grow a value, or takes long inside one operation (comparing and
hashing values that hold each other many times over, printing them), is estimated first; the clock alone would only be
looked at afterwards. Each rendering has a budget of its own, found through the thread it runs in.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

from jinja2.exceptions import SecurityError

CPU_SECONDS = 2.0
TRIAL_SECONDS = 0.2
"""For a few messages of a few words."""
MAX_CHARS = 1 << 24
MAX_NUMBER_BITS = 1 << 14
MADE_FACTOR = 32
"""How much more text may be made on the way than be put out."""
FILTERS = (
    "replace", "join", "format", "center", "indent", "wordwrap", "batch", "slice", "string", "pprint", "lower", "upper",
    "title", "capitalize", "trim", "striptags", "truncate", "wordcount", "urlize", "escape", "e", "forceescape", "safe",
    "urlencode", "xmlattr", "sort", "min", "max", "unique", "groupby", "dictsort", "list",
)  # fmt: skip
"""Those that make text or lists, print what they are given, or compare it."""
TESTS = (
    "eq", "==", "equalto", "ne", "!=", "lt", "<", "lessthan", "le", "<=", "gt", ">", "greaterthan", "ge", ">=", "in",
)  # fmt: skip
_PREDICATES = frozenset({"startswith", "endswith", "find", "rfind", "index", "rindex", "count"})


class BudgetExceeded(SecurityError):
    """The template took too long or made too much."""


class Budget:
    """What one rendering may still use. `max_chars`: of all text put out, also inside blocks that are set or called."""

    def __init__(self, max_chars: int, marks: str = "", seconds: float | None = None) -> None:
        self.max_chars = max_chars
        self.marks = marks
        self._chars = self._made = self._num_made = 0
        self._seconds = CPU_SECONDS if seconds is None else seconds
        self._deadline = time.thread_time() + self._seconds

    def tick(self) -> None:
        if time.thread_time() > self._deadline:
            raise BudgetExceeded(f"the chat template took more than {self._seconds:g} s")

    def emit(self, chars: int) -> None:
        self.put_out(chars)
        self.tick()

    def put_out(self, chars: int) -> None:
        self._chars += chars
        if self._chars > self.max_chars:
            raise BudgetExceeded(f"the chat template makes more than {self.max_chars} characters")

    def make(self, chars: int) -> None:
        self._made += chars
        self._num_made += 1
        if self._num_made % 256 == 0:
            self.tick()
        most = MADE_FACTOR * self.max_chars
        if self._made > most:
            raise BudgetExceeded(f"the chat template makes more than {most} characters on its way")


class _Active(threading.local):
    budget: Budget | None = None


active = _Active()


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
        if turns % 4096 == 0 and active.budget is not None:
            active.budget.tick()
    return total


def _limit() -> int:
    return MAX_CHARS if active.budget is None else active.budget.max_chars


def check_size(size: int) -> None:
    limit = _limit()
    if size > limit:
        raise BudgetExceeded(f"the chat template makes a value of more than {limit} characters")


def made(size: int) -> None:
    """A value of this size is about to be made."""
    check_size(size)
    if active.budget is not None:
        active.budget.make(size)


def check_nested(value: Any) -> None:
    """Before a value is printed, hashed or compared: lists may hold each other many times over."""
    if isinstance(value, (list, tuple, dict)):
        check_size(size_of(value))


def check_method(name: str, args: tuple[Any, ...]) -> None:
    """Before a method of a number or container, which may compare or hash its arguments."""
    if name == "to_bytes" and args and isinstance(args[0], int):
        made(args[0])
    for arg in args:
        check_nested(arg)


def check_binop(operator: str, left: Any, right: Any) -> None:
    sized = (str, bytes, list, tuple)
    if operator == "+" and isinstance(left, sized) and isinstance(right, sized):
        made(len(left) + len(right))
    elif operator == "*":
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, sized) and isinstance(times, int):
                made(len(sequence) * times)
        _check_bits(left, right, lambda a, b: a.bit_length() + b.bit_length())
    elif operator == "**":
        _check_bits(left, right, lambda a, b: a.bit_length() * abs(b))
    elif operator == "%" and isinstance(left, str):
        made(_formatted_size(left, right))


def _check_bits(left: Any, right: Any, bits: Callable[[int, int], int]) -> None:
    if isinstance(left, int) and isinstance(right, int) and bits(left, right) > MAX_NUMBER_BITS:
        raise BudgetExceeded("the chat template computes a number that is too large")


def check_growth(name: str, subject: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a call of a string method or filter whose result would be too long, or long in coming."""
    values = [*args, *kwargs.values()]
    count = max((abs(v) for v in values if isinstance(v, int)), default=0)
    texts = [len(v) for v in values if isinstance(v, str)]
    length = len(subject) if isinstance(subject, (str, bytes, list, tuple, dict)) else 0
    check_nested(subject)
    if name in ("center", "ljust", "rjust", "zfill", "batch", "slice"):
        made(length + count)
    elif name in ("expandtabs", "indent"):
        made((length + 1) * (1 + count + max(texts, default=0)))
    elif name == "wordwrap" and isinstance(subject, str):
        # It cuts a long word again and again.
        longest = max(map(len, subject.split()), default=0)
        width = min((v for v in values if isinstance(v, int) and v > 0), default=79)
        made((length + 1) * (1 + max(texts, default=0)) + longest * longest // width)
    elif name == "replace" and len(args) > 1 and isinstance(subject, str):
        made(length + subject.count(str(args[0])) * len(str(args[1])))
    elif name == "translate":
        tables = [v for v in values if isinstance(v, dict)]
        longest = max((len(v) for table in tables for v in table.values() if isinstance(v, str)), default=1)
        made(length * max(longest, 1))
    elif name == "encode" and values not in ([], ["utf-8"], ["utf8"], ["ascii"]):
        raise BudgetExceeded("a chat template can encode as UTF-8 only")
    elif name in ("format", "format_map"):
        made(_formatted_size(str(subject), values))
    elif name not in _PREDICATES:
        made(size_of(subject))


def sized(value: Any) -> Any:
    """What is to be joined, as something that can be counted."""
    return value if isinstance(value, (str, list, tuple, dict)) else list(value)


def check_join(members: Any, separator: str) -> None:
    made(size_of(members) + len(members) * len(separator))


def _formatted_size(pattern: str, values: Any) -> int:
    fields = pattern.count("%") + pattern.count("{") + 1
    numbers = [int(digits) if len(digits) < 12 else 10**12 for digits in re.findall(r"\d+", pattern)]
    if "*" in pattern or re.search(r"\{[^{}]*\{", pattern):
        # A width or precision that is itself a value
        members = values if isinstance(values, (list, tuple)) else [values]
        numbers += [abs(v) for v in members if isinstance(v, int)]
    return len(pattern) + fields * (max(numbers, default=0) + size_of(values))
