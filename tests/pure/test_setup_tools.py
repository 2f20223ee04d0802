"""What the set-up shows while it works, and the native kernels it keeps for the next clone; nothing is installed."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from tools import native_cache, watched

TORCH = "torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl"
OBJECTS = "Building CXX object CMakeFiles"
ROOT = Path(__file__).parents[2]
SAID = [
    ("Collecting torch==2.13.0 (from -r requirements.txt (line 3))", "package 1, torch"),
    (f"  Downloading {TORCH} (190.1 MB)", "package 1, downloading torch (190.1 MB)"),
    ("Requirement already satisfied: numpy in ./.venv/lib (from x)", "package 2, numpy"),
    ("  Using cached msgspec-0.20.0-cp311-cp311-linux.whl", "package 2, msgspec (downloaded before)"),
    ("Installing collected packages: a, b, c", "unpacking 3 packages"),
    ("  *** Configuring CMake...", "looking at the compiler"),
    (f"  [12/48] {OBJECTS}/avx2.dir/kernels/norm.cpp.o", "compiled 12 of 48 files, last norm.cpp for avx2"),
    (f"  [1/48] {OBJECTS}/once.dir/dispatch.cpp.o", "compiled 1 of 48 files, last dispatch.cpp"),
    ("  [48/48] Linking CXX shared module _native.so", "linking"),
]


def test_progress_says_what_is_done_and_how_much_is_left() -> None:
    progress = watched.Progress()
    for line, doing in SAID:
        progress.read(line)
        assert progress.doing == doing
    counted = watched.Progress(40)
    counted.read(SAID[0][0])
    assert counted.doing == "package 1 of 40, torch"
    progress.read("  copying something to somewhere")
    assert progress.doing == SAID[-1][1]


def test_pins_are_counted_with_those_of_included_files() -> None:
    run, dev = (watched.num_pinned(ROOT / f"requirements{more}.txt") for more in ("", "-dev"))
    assert 20 < run < dev


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_line_on_a_terminal_and_few_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for out in (terminal, pipe):
        shown = watched.Shown(out)
        for seconds in range(60):
            shown.show(f"compiled {seconds} of 60 files", seconds)
        for seconds in range(60, 100):
            shown.show("x" * 500, seconds)
        shown.clear()
    assert "\n" not in terminal.getvalue() and terminal.getvalue().endswith("\r\033[K")
    assert "\r    59 s: compiled 59 of 60 files\033[K" in terminal.getvalue() and "x" * 400 not in terminal.getvalue()
    assert pipe.getvalue().splitlines()[0] == "    10 s: compiled 10 of 60 files" and pipe.getvalue().count("\n") == 7


def test_a_failure_shows_the_end_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "build" / "install.log"

    def ran(code: str) -> int:
        monkeypatch.setattr(sys, "argv", ["watched.py", str(log), sys.executable, "-c", code])
        return watched.main()

    assert ran("print('quiet')") == 0 and capsys.readouterr().err == ""
    assert ran("import sys; [print('line', i) for i in range(99)]; print('why', file=sys.stderr); sys.exit(3)") == 3
    shown = capsys.readouterr().err
    assert shown.endswith(f"why\n(all of it: {log})\n") and "line 98" in shown and "line 9\n" not in shown
    assert "quiet" not in shown and "quiet" in log.read_text() and "line 9\n" in log.read_text()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone whose compiler is a script, and a home of its own."""
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho a compiler 1.0\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return clone(tmp_path / "first")


def clone(folder: Path) -> Path:
    (folder / "csrc/kernels").mkdir(parents=True)
    (folder / "csrc/kernels/a.cpp").write_text("int a;")
    (folder / native_cache.PLACE).mkdir(parents=True)
    for name in ("pyproject.toml", "requirements-build.txt"):
        (folder / name).write_text(name)
    return folder


def module(folder: Path) -> Path:
    return folder / native_cache.PLACE / "_native.abi3.so"


def test_another_clone_takes_what_was_built(checkout: Path, tmp_path: Path) -> None:
    assert native_cache.main("take", checkout) == 1
    module(checkout).write_bytes(b"\x7fELF built")
    assert native_cache.main("keep", checkout) == 0
    second = clone(tmp_path / "second")
    assert native_cache.main("take", second) == 0 and module(second).read_bytes() == b"\x7fELF built"
    assert (tmp_path / "home/.cache/octavo/native").stat().st_mode & 0o77 == 0
    assert native_cache.main("forget", second) == 0 and native_cache.main("take", second) == 1


@pytest.mark.parametrize("changed", ["csrc/kernels/a.cpp", "csrc/new.h", "pyproject.toml", "CXX", "CXXFLAGS"])
def test_what_a_compiler_would_make_otherwise_is_not_taken(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    module(checkout).write_bytes(b"built")
    assert native_cache.main("keep", checkout) == 0
    if changed == "CXX":
        Path(os.environ["CXX"]).write_text("#!/bin/sh\necho a compiler 1.1\n")
    elif changed == "CXXFLAGS":
        monkeypatch.setenv("CXXFLAGS", "-O0")
    else:
        (checkout / changed).write_text("[tool.scikit-build]\nchanged = true\n")
    assert native_cache.main("take", checkout) == 1


def test_a_project_file_that_builds_the_same_is_the_same(checkout: Path) -> None:
    module(checkout).write_bytes(b"built")
    built = "[tool.scikit-build]\na = 1\n[[tool.scikit-build.overrides]]\nb = 2\n"
    (checkout / "pyproject.toml").write_text(built + "[tool.ruff]\nline-length = 120\n")
    assert native_cache.main("keep", checkout) == 0
    (checkout / "pyproject.toml").write_text("[project]\ndependencies = []\n" + built)
    assert native_cache.main("take", checkout) == 0


@pytest.mark.parametrize("damage", ["cut off", "changed", "no sum", "empty", "two"])
def test_a_damaged_entry_is_built_again(checkout: Path, damage: str) -> None:
    module(checkout).write_bytes(b"built")
    assert native_cache.main("keep", checkout) == 0
    folder = native_cache.cache_folder()
    assert folder is not None
    (entry,) = folder.iterdir()
    kept = entry / module(checkout).name
    module(checkout).unlink()
    if damage in ("cut off", "changed"):
        kept.write_bytes(b"buil" if damage == "cut off" else b"other")
    elif damage == "two":
        (entry / "_native.other.so").write_bytes(b"other")
    else:
        (entry / "sha256" if damage == "no sum" else kept).unlink()
    assert native_cache.main("take", checkout) == 1 and not module(checkout).exists()
    module(checkout).write_bytes(b"again")
    assert native_cache.main("keep", checkout) == 0 and native_cache.main("take", checkout) == 0
    assert module(checkout).read_bytes() == b"again"


def test_no_home_no_cache_and_no_failure(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(checkout).write_bytes(b"built")
    file = tmp_path / "file"
    file.touch()
    for home in (None, "", "relative", str(file)):
        monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
        assert native_cache.main("keep", checkout) == native_cache.main("take", checkout) == 1
    assert not (checkout / "relative").exists()


def test_old_entries_go(checkout: Path) -> None:
    module(checkout).write_bytes(b"built")
    for number in range(native_cache.ENTRIES + 3):
        (checkout / "csrc/kernels/a.cpp").write_text(f"int a{number};")
        assert native_cache.main("keep", checkout) == 0
    folder = native_cache.cache_folder()
    assert folder is not None and len(list(folder.iterdir())) == native_cache.ENTRIES
    assert native_cache.main("take", checkout) == 0
