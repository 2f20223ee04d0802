"""The Jinja environment that chat templates run in: what Transformers offers them, plus a budget. Used by template.py.

Templates are code from a model's author. They run in Jinja's immutable sandbox; loops and macros pay for every turn,
and text/budget.py is asked before an operation, call or filter that may grow a value or take long, so that a hostile
template ends in BudgetExceeded within seconds instead of taking the server's time and memory. Invariant: a template
within the budget renders the same bytes as it would in Transformers.
"""

from __future__ import annotations

import json
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

from octavo.text import budget as budgets
from octavo.text.budget import Budget, active, check_growth, check_join, made, size_of, sized


def render(template: jinja2.Template, budget: Budget, variables: dict[str, Any]) -> str:
    """Render within the budget. Raises whatever the template raises."""
    active.budget = budget
    try:
        return template.render(variables)
    finally:
        active.budget = None


class _Guarded(NodeTransformer):
    """Makes loop turns, macro calls, `~`, text and comparisons pass through the environment's budget."""

    def __init__(self, environment: jinja2.Environment) -> None:
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._pay(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._pay(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("guarded_concat", node.nodes, node.lineno)

    def visit_Output(self, node: nodes.Output) -> Any:
        self.generic_visit(node)
        chars = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        return [self._statement("guarded_text", nodes.Const(chars), node.lineno), node] if chars else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """All but the last of what is compared: a comparison takes no longer than its smaller side."""
        self.generic_visit(node)
        holders: list[Any] = [node, *node.ops[:-1]]
        for holder in holders:
            if not isinstance(holder.expr, nodes.Const):
                holder.expr = self._call("guarded_operand", [holder.expr], node.lineno)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = self._call("guarded_slice", [node.node], node.lineno)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = self._call("guarded_operand", [node.key], node.lineno)
        return node

    def _pay(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, self._statement("guarded_tick", None, node.lineno))
        return node  # type: ignore[no-any-return]

    def _statement(self, method: str, argument: nodes.Expr | None, lineno: int) -> nodes.Node:
        call = self._call(method, [] if argument is None else [argument], lineno)
        return nodes.ExprStmt(call).set_lineno(lineno).set_environment(self._environment)

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
        for name in budgets.FILTERS:
            self.filters[name] = _guarded_filter(name, self.filters[name])
        self.filters["sum"] = _sum
        for name in budgets.TESTS:
            test: Any = self.tests[name]
            self.tests[name] = _guarded_test(test)
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
        if active.budget is not None:
            active.budget.tick()

    def guarded_text(self, chars: int) -> None:
        if active.budget is not None:
            active.budget.put_out(chars)

    def guarded_operand(self, value: Any) -> Any:
        budgets.check_nested(value)
        return value

    def guarded_slice(self, value: Any) -> Any:
        if isinstance(value, (str, bytes, list, tuple)):
            made(len(value))
        return value

    def guarded_concat(self, *values: Any) -> str:
        made(size_of(values))
        return "".join(map(str, values))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budgets.check_binop(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)
        subject = getattr(method, "__self__", None)
        if isinstance(subject, (str, bytes)):
            if method.__name__ == "join" and args and isinstance(subject, str):
                args = (sized(args[0]), *args[1:])
                check_join(args[0], subject)
            check_growth(method.__name__, subject, args, kwargs)
        elif isinstance(subject, (int, dict, list, tuple)):
            budgets.check_method(method.__name__, args)
        return super().call(__context, __obj, *args, **kwargs)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            budgets.check_nested(argument)
        return super().getitem(obj, argument)


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
        budgets.check_method("dict", args)
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        budgets.check_nested(keys)
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
    made(size * (1 + max(width, 0)))
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if ensure_ascii and active.budget is not None:
        # Marks stay single characters, so that they can be found and taken out of the rendered text.
        for mark in active.budget.marks:
            text = text.replace(json.dumps(mark)[1:-1], mark)
    return text


def _count_output(value: Any) -> Any:
    """Jinja's finalize hook: sees everything that `{{ }}` shows, before it becomes text."""
    if (budget := active.budget) is not None:
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
                value = sized(value)
                args = (*args[:position], value, *args[position + 1 :])
                check_join(value, "".join(v for v in (*args[position + 1 :], *kwargs.values()) if isinstance(v, str)))
            check_growth(name, value, args[position + 1 :], kwargs)
        return function(*args, **kwargs)

    if passes is not None:
        guarded.jinja_pass_arg = passes  # type: ignore[attr-defined]
    return guarded


def _guarded_test(function: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(value: Any, *args: Any) -> Any:
        budgets.check_nested(value)
        return function(value, *args)

    return guarded


@jinja2.pass_environment
def _sum(environment: ChatEnvironment, iterable: Any, attribute: str | int | None = None, start: Any = 0) -> Any:
    """Jinja's `sum`, whose additions are looked at as those of `+`."""
    values = iterable if attribute is None else map(jinja2.filters.make_attrgetter(environment, attribute), iterable)
    for value in values:
        environment.guarded_tick()
        budgets.check_binop("+", start, value)
        start = start + value
    return start
