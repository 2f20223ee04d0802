"""The rules of the house as docs/architecture.md draws it, kept by reading the source: who may import whom, where torch
may be, who reads the environment, how long files and functions get, and which calls are never made.

A module belongs to the room with the longest matching name below. A rule that is in the way is a reason to change the
house and that page, not to make an exception here.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from patience import PATIENCE_S

from tools import floors

ROOT = Path(__file__).parents[2]
CODE = ROOT / "octavo"

BASE = "errors types env log fair capability cachespec"
_MAY_IMPORT = {
    # the ground floor
    "errors": "",
    "cachespec": "",
    "types": "errors",
    "capability": "",
    "env": "errors",
    "fair": "",
    "rank": "",
    "log": "errors env",
    "processes": "errors env",
    # what a model is, as files and numbers
    "modelfiles": f"{BASE}",
    "config": f"{BASE} modelfiles.facts",
    "config.decide": f"{BASE} config modelfiles",
    "modelfiles.hub": f"{BASE} config modelfiles",
    # what crosses between processes, and between the islands
    "wire": "errors types cachespec processes",
    "wire.sockets": f"{BASE} processes wire",
    "text": f"{BASE} modelfiles",
    "grammar": f"{BASE} processes modelfiles.files text",
    # the engine sees integers: no sockets, no tensors
    "engine": f"{BASE} config wire grammar executor.base",
    "engine.assembly": f"{BASE} config modelfiles.files wire grammar engine executor.base",
    "engine.process": (
        f"{BASE} processes config config.decide modelfiles modelfiles.hub wire wire.sockets engine engine.assembly"
        " executor"
    ),
    "executor": f"{BASE} rank processes config modelfiles wire",
    # towards the user
    "client": f"{BASE} processes config modelfiles wire wire.sockets text grammar",
    "client.local": (
        f"{BASE} config config.decide modelfiles modelfiles.hub wire text grammar client engine engine.assembly"
        " executor"
    ),
    "client.offline": f"{BASE} config modelfiles wire text client client.local client.offline_async executor",
    "client.offline_async": f"{BASE} config modelfiles wire text client client.local executor",
    "server.core": f"{BASE} octavo config wire text client",
    "server.http": f"{BASE} octavo config server.core",
    "server.faces": f"{BASE} octavo config wire text grammar client server.core server.http",
    "server": f"{BASE} config text client server.core server.http server.faces",
    "server.process": f"{BASE} processes config modelfiles.files client server.http server.faces server",
    "supervisor": f"{BASE} processes config config.decide modelfiles modelfiles.hub wire wire.sockets",
    "bench": f"{BASE} octavo config modelfiles modelfiles.hub wire text client client.local executor.base",
    "cli": (
        f"{BASE} processes octavo config config.decide modelfiles modelfiles.hub text client client.offline"
        " server.process supervisor engine.process bench"
    ),
    "__main__": "processes cli",
    "octavo": "types errors",  # octavo/__init__.py: the public names, loaded when first asked for
    # the tensor island
    "kernels": "errors env rank capability",
    "distributed": "errors env",
    "weights": "errors modelfiles kernels.layouts kernels.ops",
    "layers": "errors modelfiles.facts kernels.ops kernels.layouts kernels.step kernels.expression distributed",
    "models": (
        "errors config modelfiles weights.checkpoint layers kernels.ops kernels.layouts kernels.step kernels.expression"
    ),
    "worker": (
        f"{BASE} rank config modelfiles wire weights models distributed worker.sampler worker.queue"
        " kernels.ops kernels.layouts kernels.step kernels.recorded kernels.rows kernels.sampling_rows kernels.memory"
        " kernels.registry"
    ),
    "worker.sampler": "errors types wire kernels.ops kernels.sampling_rows worker.queue",
    "worker.queue": "wire",
}
_ONLY_IN_FUNCTIONS = {
    "executor": "worker",  # the bridge: the function that starts the worker
    "supervisor": "engine.process server.process",  # each in its own child
    "cli": "kernels.registry",  # doctor tells what was chosen and why
}
MAY_IMPORT = {name: tuple(rooms.split()) for name, rooms in _MAY_IMPORT.items()}
ONLY_IN_FUNCTIONS = {name: tuple(rooms.split()) for name, rooms in _ONLY_IN_FUNCTIONS.items()}
"""Further imports that a module may make where it needs them, not when it is imported."""

TENSOR_ISLAND = {"kernels", "distributed", "weights", "layers", "models", "worker"}
READ_ENVIRONMENT = {"config", "env", "cli"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
EMPTY_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}


@dataclass(frozen=True)
class Import:
    target: str
    """Dotted, without the leading "octavo."; the root package itself is "octavo"."""
    line: int
    in_function: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(CODE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "octavo"


MODULES = {module_name(path): path for path in sorted(CODE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def room(module: str) -> str:
    """The longest room that `module` is in, or its first name where there is none."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in MAY_IMPORT:
            return name
    return parts[0]


def imports(tree: ast.AST, in_function: bool = False) -> Iterator[Import]:
    """Imports of octavo's own modules, each as deep as it goes."""
    for node in ast.iter_child_nodes(tree):
        inside = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "octavo":
                    yield Import(alias.name.partition(".")[2] or "octavo", node.lineno, inside)
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "octavo"):
            assert node.level == 0, "relative imports hide what is imported; write octavo.…"
            base = (node.module or "").partition(".")[2]
            for alias in node.names:
                deeper = f"{base}.{alias.name}" if base else alias.name
                yield Import(deeper if deeper in MODULES else base or "octavo", node.lineno, inside)
        yield from imports(node, inside)


def permits(entries: tuple[str, ...], target: str) -> bool:
    """Whether an entry covers `target`; an entry covers no room of its own inside its folder."""
    return any(room(target) == room(entry) and (target == entry or target.startswith(entry + ".")) for entry in entries)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name: str) -> None:
    here = room(name)
    assert here in MAY_IMPORT, f"octavo.{name} is in no room of MAY_IMPORT"
    wrong = []
    for found in imports(TREES[name]):
        late = ONLY_IN_FUNCTIONS.get(here, ()) if found.in_function else ()
        if room(found.target) != here and not permits(MAY_IMPORT[here] + late, found.target):
            wrong.append(f"line {found.line}: octavo.{found.target}")
    assert not wrong, f"octavo.{name} ({here}) may not import " + "; ".join(wrong)


SERVER_FLOORS = 7
"""At most so many files of server/ in a chain of imports."""


def test_the_wings_of_the_server_point_down() -> None:
    server = floors.now()
    assert list(server.upward) == [], "core ← http ← faces ← app, routes, process"
    assert len(server.longest_chain) <= SERVER_FLOORS, " → ".join(server.longest_chain)


def test_the_table_itself_points_down() -> None:
    above: dict[str, set[str]] = {}

    def below(name: str, path: tuple[str, ...]) -> set[str]:
        assert name not in path, f"cycle: {' → '.join((*path, name))}"
        if name not in above:
            above[name] = {room(entry) for entry in MAY_IMPORT[name]} - {name}
            for lower in above[name]:
                below(lower, (*path, name))
        return above[name]

    for name in MAY_IMPORT:
        below(name, ())


def test_no_module_imports_itself_through_others() -> None:
    graph = {
        name: {found.target for found in imports(tree) if not found.in_function} - {name}
        for name, tree in TREES.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"cycle: {' → '.join((*path[path.index(name) :], name))}"
        if name not in done:
            for lower in graph.get(name, ()):
                visit(lower, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("name", MODULES)
def test_nothing_hides_behind_type_checking(name: str) -> None:
    hidden = [node.lineno for node in ast.walk(TREES[name]) if "TYPE_CHECKING" in _names(node)]
    assert not hidden, f"octavo.{name} lines {hidden}"


def _names(node: ast.AST) -> set[str]:
    """The plain and attribute names a node itself mentions."""
    if isinstance(node, ast.Name):
        return {node.id}
    if isinstance(node, ast.Attribute):
        return {node.attr}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {alias.name for alias in node.names}
    return set()


def _imported_packages(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] not in TENSOR_ISLAND])
def test_the_control_island_names_no_tensor_library(name: str) -> None:
    roots = {package.split(".")[0] for package in _imported_packages(TREES[name])}
    assert not roots & {"torch", "triton", "flashinfer", "transformers", "gguf"}


@pytest.mark.parametrize("name", [name for name in MODULES if room(name).split(".")[0] not in READ_ENVIRONMENT])
def test_only_three_rooms_read_the_environment(name: str) -> None:
    wrong = []
    for node in ast.walk(TREES[name]):
        of_os = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
        from_os = isinstance(node, ast.ImportFrom) and node.module == "os"
        if (of_os or from_os) and _names(node) & {"environ", "environb", "getenv", "putenv", "unsetenv"}:
            wrong.append(node.lineno)
    assert not wrong, f"octavo.{name} lines {wrong}: ask octavo.env or take an option"


def test_control_island_imports_without_torch() -> None:
    """All of it at once in a fresh process, the server's application among it."""
    control = [name for name in MODULES if name.split(".")[0] not in TENSOR_ISLAND and not name.endswith("__main__")]
    assert "server.app" in control
    code = f"""
import importlib, sys
for name in {control!r}:
    importlib.import_module("octavo" if name == "octavo" else "octavo." + name)
heavy = {{"torch", "transformers", "huggingface_hub", "triton"}}
sys.exit(", ".join(sorted(heavy & set(sys.modules))) or 0)
"""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert ran.returncode == 0, ran.stderr


FORBIDDEN_PACKAGES = {
    "pickle",
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "joblib",
    "jsonpickle",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    *("torch.load", "torch.save", "torch.jit.load", "torch.package", "np.load", "numpy.load", "yaml.load"),
    *("yaml.unsafe_load", "os.system", "os.popen", "multiprocessing.Queue", "multiprocessing.Pipe"),
    *("multiprocessing.Manager", "multiprocessing.connection", "multiprocessing.Pool"),
}
FORBIDDEN_JINJA = {"Environment", "SandboxedEnvironment", "NativeEnvironment", "Template"}
FORBIDDEN_KEYWORDS = {"trust_remote_code", "allow_pickle", "shell"}
"""Keywords that may only be False."""


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _is_open_jinja(node: ast.AST) -> bool:
    """Whether `node` names a Jinja class that lets a template reach more than ImmutableSandboxedEnvironment does."""
    dotted = _dotted(node)
    return dotted.startswith("jinja2.") and dotted.split(".")[-1] in FORBIDDEN_JINJA


def dangers(tree: ast.AST) -> Iterator[str]:
    """What could run code from a model file, a message or a request: T-PICKLE, T-EVAL, T-REMOTE, T-SSTI."""
    for package in _imported_packages(tree):
        if package.split(".")[0] in FORBIDDEN_PACKAGES or package in FORBIDDEN_ATTRIBUTES:
            yield f"import {package}"
        if package.startswith("jinja2") and package.split(".")[-1] in FORBIDDEN_JINJA:
            yield f"import {package}: templates run in ImmutableSandboxedEnvironment only"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if _dotted(node) in FORBIDDEN_ATTRIBUTES:
                yield f"line {node.lineno}: {_dotted(node)}"
        elif isinstance(node, ast.ClassDef):
            yield from (f"line {node.lineno}: {_dotted(base)}" for base in node.bases if _is_open_jinja(base))
        elif isinstance(node, ast.Call):
            if _is_open_jinja(node.func):
                yield f"line {node.lineno}: {_dotted(node.func)}()"
            if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
                yield f"line {node.lineno}: {node.func.id}()"
            for keyword in node.keywords:
                is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in FORBIDDEN_KEYWORDS and not is_false:
                    yield f"line {node.lineno}: {keyword.arg}="


@pytest.mark.parametrize("name", MODULES)
def test_nothing_runs_code_it_was_sent(name: str) -> None:
    assert not list(dangers(TREES[name])), f"octavo.{name}"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "from torch import load",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "eval(text)",
        "exec(text)",
        "f(trust_remote_code=True)",
        "f(trust_remote_code=flag)",
        "numpy.load(path)",
        "g(path, allow_pickle=True)",
        "from multiprocessing import Queue",
        "from jinja2 import Environment",
        "jinja2.sandbox.SandboxedEnvironment()",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_gate_sees(source: str) -> None:
    assert list(dangers(ast.parse(source)))


def test_the_gate_lets_through() -> None:
    harmless = ("model.eval()", "re.compile(x)", "f(trust_remote_code=False)", "def f(x: jinja2.Template) -> None: ...")
    assert not list(dangers(ast.parse("\n".join(harmless))))
    assert not list(dangers(ast.parse("from jinja2.sandbox import ImmutableSandboxedEnvironment")))


def test_files_are_short() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in MODULES.values()}
    assert {path: lines for path, lines in lengths.items() if lines >= MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    offenders = {}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines >= MAX_FUNCTION_LINES:
                    offenders[f"octavo.{name}:{node.lineno} {node.name}"] = lines
    assert offenders == {}


def test_every_file_says_what_it_owns() -> None:
    silent = [name for name, tree in TREES.items() if tree.body and ast.get_docstring(tree) is None]
    assert silent == []


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports them by their names alone: of two it runs neither."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert [name for name in set(names) if names.count(name) > 1] == []


def test_names_say_something() -> None:
    paths = [*CODE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    assert [str(path) for path in paths if EMPTY_NAMES & {path.stem, path.parent.name}] == []
