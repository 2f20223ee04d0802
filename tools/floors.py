"""Counts the inside of octavo/server: its floors (the longest chain of files that import each other), the imports that
point up between its wings, and its lines; before and after it was taken apart into wings.

`python -m tools.floors` prints the table; `--write` puts it into docs/architecture.md between its two marks. The state
before is read from git, so it needs a clone with history. tests/pure/test_house.py keeps the rules themselves.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVER = "octavo/server"
PAGE = ROOT / "docs" / "architecture.md"
BEFORE = "676e6f7"
"""The last commit whose server/ had one folder for all but the OpenAI and Anthropic faces."""
MARKS = ("<!-- from here: written by tools/floors.py -->", "<!-- to here -->")

WINGS = ("core", "http", "faces", "top")
"""From the ground up: a file imports from its own wing and those before it. `top` is what stands in server/ itself."""
_MOVED = {
    "core": (
        "account conversation errors history inflight limits machine metrics pieces serving structured turns work"
    ),
    "http": "auth connection context cors decode middleware sse tracing",
    "faces": "openai anthropic docs props system",
}
WING_BEFORE = {name: wing for wing, names in _MOVED.items() for name in names.split()}
"""Where the files and folders that stood in server/ itself at BEFORE have gone."""


@dataclass(frozen=True)
class Server:
    """The files of octavo/server at one time. `sources`: dotted name below octavo.server → text."""

    sources: Mapping[str, str]

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """Of each file that holds something, which others it imports, wherever in it."""
        known = {name for name, text in self.sources.items() if text.strip()}
        return {name: set(_imported(ast.parse(self.sources[name]), known)) - {name} for name in sorted(known)}

    def wing(self, name: str) -> str:
        first = name.partition(".")[0]
        return first if first in WINGS else WING_BEFORE.get(first, "top")

    @cached_property
    def longest_chain(self) -> list[str]:
        """The files of the longest chain of imports, from its top. A circle is cut where it is met."""
        found: dict[str, list[str]] = {}

        def chain(name: str, above: tuple[str, ...]) -> list[str]:
            if name not in found:
                below = [chain(lower, (*above, name)) for lower in sorted(self.imports[name]) if lower not in above]
                found[name] = [name, *max(below, key=len, default=[])]
            return found[name]

        return max((chain(name, ()) for name in self.imports), key=len)

    @cached_property
    def upward(self) -> list[tuple[str, str]]:
        """Imports from a wing above: (who, what)."""
        height = {name: WINGS.index(self.wing(name)) for name in self.imports}
        return [
            (name, other)
            for name in self.imports
            for other in sorted(self.imports[name])
            if height[other] > height[name]
        ]

    def lines(self, wing: str | None = None) -> int:
        """Of one wing, or of all."""
        chosen = [text for name, text in self.sources.items() if wing in (None, self.wing(name))]
        return sum(len(text.splitlines()) for text in chosen)

    @property
    def most_in_a_folder(self) -> int:
        folders = [name.rpartition(".")[0] for name in self.imports]
        return max(map(folders.count, folders))


def _imported(tree: ast.AST, known: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [name for alias in node.names for name in (f"{node.module}.{alias.name}", node.module or "")]
        for name in names:
            if (short := name.removeprefix("octavo.server.")) in known and name.startswith("octavo.server."):
                yield short


def now() -> Server:
    """As the files of this checkout are."""
    folder = ROOT / SERVER
    return Server({_dotted(path.relative_to(folder).as_posix()): path.read_text() for path in folder.rglob("*.py")})


def at(commit: str) -> Server:
    """As a commit has it."""
    command = ["git", "archive", "--format=tar", commit, SERVER]
    packed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    sources = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            if member.name.endswith(".py") and (file := archive.extractfile(member)) is not None:
                sources[_dotted(member.name.removeprefix(SERVER + "/"))] = file.read().decode()
    return Server(sources)


def _dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def table(before: Server, after: Server) -> str:
    """In Markdown."""
    rows = [
        ("floors (files in the longest chain of imports)", len(before.longest_chain), len(after.longest_chain)),
        ("imports that point up between the wings", len(before.upward), len(after.upward)),
        ("files in the fullest folder", before.most_in_a_folder, after.most_in_a_folder),
        ("files", len(before.imports), len(after.imports)),
        *((f"lines of `{wing}`", before.lines(wing), after.lines(wing)) for wing in WINGS[:-1]),
        ("lines of what stands above them", before.lines("top"), after.lines("top")),
        ("lines in all", before.lines(), after.lines()),
    ]
    head = [f"| inside of `server/` | {BEFORE}, before the wings | now |", "|---|---|---|"]
    return "\n".join([*head, *(f"| {what} | {old:,} | {new:,} |" for what, old, new in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/architecture.md")
    parser.add_argument("--verbose", action="store_true", help="name the chain and the imports that point up")
    options = parser.parse_args()
    after = now()
    text = table(at(BEFORE), after)
    print(text)
    if options.verbose:
        print("\nlongest chain: " + " → ".join(after.longest_chain))
        print("\n".join(f"upward: {name} → {other}" for name, other in after.upward))
    if options.write:
        page = PAGE.read_text()
        start, end = (page.index(mark) for mark in MARKS)
        PAGE.write_text(page[: start + len(MARKS[0])] + "\n" + text + "\n" + page[end:])


if __name__ == "__main__":
    main()
