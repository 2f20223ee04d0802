"""What text/sandbox.py uses of Jinja beyond its documented interface: a version without it must fail here, not open the
sandbox. The versions allowed are capped in pyproject.toml."""

from __future__ import annotations

import inspect
from pathlib import Path

import jinja2
from jinja2 import nodes, sandbox, utils
from jinja2.visitor import NodeTransformer

from octavo.text.sandbox import ChatEnvironment


def test_the_versions_are_capped() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '"jinja2>=3.1.6,<3.2"' in text
    assert (3, 1, 6) <= tuple(map(int, jinja2.__version__.split(".")[:3])) < (3, 2)


def test_operators_and_calls_are_intercepted() -> None:
    environment = sandbox.ImmutableSandboxedEnvironment
    assert environment.intercepted_binops == frozenset()
    assert list(inspect.signature(environment.call_binop).parameters) == [
        "self",
        "context",
        "operator",
        "left",
        "right",
    ]
    assert list(inspect.signature(environment.call).parameters)[:2] == [
        "_SandboxedEnvironment__self",
        "_SandboxedEnvironment__context",
    ]
    assert list(inspect.signature(environment.getitem).parameters) == ["self", "obj", "argument"]
    seen: list[str] = []

    class Spying(ChatEnvironment):
        def call_binop(self, context: object, operator: str, left: object, right: object) -> object:
            seen.append(operator)
            return super().call_binop(context, operator, left, right)

        def call(__self, __context: object, __obj: object, *args: object, **kwargs: object) -> object:
            seen.append(getattr(__obj, "__name__", "?"))
            return super().call(__context, __obj, *args, **kwargs)

    source = "{{ (a + a) ~ (a * 2) ~ ('%s' % a) ~ 2 ** 3 ~ a.upper() }}"
    assert Spying().from_string(source).render(a="x") == "xxxxx8X"
    assert sorted(seen) == sorted(["+", "*", "%", "**", "upper"])


def test_formatting_shows_its_text() -> None:
    """Jinja puts its own function in the place of str.format; the text it belongs to is found all the same."""
    method = ChatEnvironment().getattr("{}", "format")
    assert getattr(method, "__wrapped__", method).__self__ == "{}"


def test_filters_say_what_they_are_passed() -> None:
    found = {name: getattr(function, "jinja_pass_arg", None) for name, function in jinja2.filters.FILTERS.items()}
    assert found["join"] is not None and found["sum"] is not None and found["upper"] is None


def test_nodes_and_namespaces() -> None:
    call = nodes.Call(nodes.EnvironmentAttribute("guarded_tick"), [], [], None, None)
    call.set_lineno(1).set_environment(jinja2.Environment())
    assert call.fields == ("node", "args", "kwargs", "dyn_args", "dyn_kwargs")
    assert nodes.Concat.fields == ("nodes",) and "body" in nodes.For.fields and "body" in nodes.Macro.fields
    assert nodes.Output.fields == ("nodes",) and nodes.TemplateData.fields == ("data",)
    assert nodes.Compare.fields == ("expr", "ops") and nodes.Operand.fields == ("op", "expr")
    assert callable(NodeTransformer.generic_visit)
    assert list(inspect.signature(utils.Namespace.__setitem__).parameters) == ["self", "name", "value"]
    found = utils.Namespace({"a": 1})
    found["b"] = 2
    assert (found.a, found.b) == (1, 2)
