"""`octavo chat` at a terminal of its own (a pty): typing, pasting, interrupting, and what the screen is told."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from tiny import write_tiny_model

from octavo.cli import chat, lines
from octavo.config.commands import ChatOptions

PATIENCE_S = 90.0
PROMPT = "«prompt»"
"""Stands for what the input line says when it begins to listen: pastes are to be marked."""
_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[()].|[=>78])")


class Terminal:
    """A process on a pty of 80 by 24, and all that it has written so far."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.fd, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.written = b""
        self._at = 0
        """Of the text: what is before it has been waited for."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "octavo", *arguments],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "OMP_NUM_THREADS": "1", **environment},
        )
        os.close(inner)

    @property
    def text(self) -> str:
        marked = self.written.replace(b"\x1b[?2004h", PROMPT.encode())
        return _ESCAPES.sub(b"", marked).decode(errors="replace")

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def read(self, seconds: float = 0.1) -> bool:
        """More of what it writes; False at its end."""
        if select.select([self.fd], [], [], seconds)[0]:
            try:
                piece = os.read(self.fd, 65536)
            except OSError:  # nobody has the other end any more
                return False
            self.written += piece
            return bool(piece)
        return True

    def until(self, wanted: str) -> str:
        """Reads until this has been written after what was waited for before; → what came."""
        end = time.monotonic() + PATIENCE_S
        while (found := self.text.find(wanted, self._at)) < 0:
            assert self.read() and time.monotonic() < end, f"no {wanted!r} in {self.text[self._at :]!r}"
        start, self._at = self._at, found + len(wanted)
        return self.text[start : self._at]

    def ask(self, keys: str, wanted: str) -> str:
        """Types, and reads until the answer's end and the next prompt."""
        self.type(keys)
        return self.until(wanted) + self.until(PROMPT)

    def ended(self) -> int:
        end = time.monotonic() + PATIENCE_S
        while self.read() and self.process.poll() is None:
            assert time.monotonic() < end, self.text
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 60_000}))
    return folder


OPTIONS = ("--dtype", "float32", "--threads", "1", "--max-num-seqs", "1", "--temperature", "0", "--ignore-eos")


@pytest.fixture
def terminal(request: pytest.FixtureRequest, model: Path, tmp_path: Path) -> Iterator[Terminal]:
    """A chat that is ready to be typed to; the test's parameters are further options."""
    more = getattr(request, "param", ())
    found = Terminal("chat", str(model), *OPTIONS, *more, OCTAVO_CACHE=str(tmp_path))
    try:
        found.until("/help lists the commands")
        found.until(PROMPT)
        yield found
    finally:
        found.close()


def history(folder: Path) -> list[str]:
    return [json.loads(line) for line in (folder / "chat-history").read_text().splitlines()]


@pytest.mark.parametrize("terminal", [("--max-tokens", "4")], indirect=True)
def test_messages_of_several_lines_are_one_and_history_keeps_them(terminal: Terminal, tmp_path: Path) -> None:
    lines = [f"line {i}" for i in range(20)]
    terminal.type("\x1b[200~" + "\r".join(lines) + "\x1b[201~")
    terminal.until("19")
    terminal.ask("\r", "cut after 4 tokens")
    terminal.type("first\\")
    terminal.until("first")
    terminal.type("\r")
    terminal.type("second")
    terminal.until("second")
    terminal.ask("\r", "cut after 4 tokens")
    terminal.ask("/usr/bin is a folder\r", "cut after 4 tokens")
    terminal.ask("/rest\r", "did you mean /reset?")
    assert "first token after" in terminal.ask("/stats\r", "tokens/s")
    assert terminal.text.count("cut after 4 tokens") == 3
    assert history(tmp_path) == ["\n".join(lines), "first\\\nsecond", "/usr/bin is a folder", "/rest", "/stats"]
    assert stat.S_IMODE((tmp_path / "chat-history").stat().st_mode) == 0o600
    terminal.type("\x04")
    assert terminal.ended() == 0


@pytest.mark.parametrize("terminal", [("--max-tokens", "50000")], indirect=True)
def test_ctrl_c_ends_the_answer_then_the_chat_and_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    terminal.type("hello\r")
    terminal.until("\n")
    while terminal.written.count(b"\x1b[J") < 5:  # it has been drawn several times
        assert terminal.read()
    terminal.type("typed ahead\r")
    terminal.type("\x03")
    terminal.until("stopped")
    terminal.until("ahead")  # it waits there, and has not been sent
    terminal.type("\x03")  # clears it
    terminal.type("/stats\r")
    terminal.until("tokens/s")
    terminal.until(PROMPT)
    terminal.type("\x03")
    terminal.until("Ctrl-C once more")
    terminal.until(PROMPT)
    terminal.type("\x03")
    assert terminal.ended() in (0, 130)
    lines = termios.ECHO | termios.ICANON | termios.ISIG
    assert termios.tcgetattr(terminal.fd)[3] & (lines | termios.NOFLSH) == lines
    assert terminal.written.rfind(b"\x1b[?25h") > terminal.written.rfind(b"\x1b[?25l")  # the cursor is shown
    assert "Traceback" not in terminal.text


def test_ctrl_c_between_two_prompts_is_one_at_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """There SIGINT is a signal and not a key: it cuts nothing in two and ends nothing by itself."""
    reads, notes, pressing = [], [], iter([True, False, True, True])
    typed = iter(["/stats", "/stats", "/stats", "/stats", "/stats"])

    class Scripted:
        def __init__(self, history: Path | None) -> None:
            pass

        def read(self, begun: str) -> str:
            reads.append(begun)
            if len(reads) == 4:
                raise KeyboardInterrupt  # the key, at the prompt after the one that was pressed between two
            return next(typed)

    def command(name: str, rest: str) -> bool:
        if next(pressing):
            signal.raise_signal(signal.SIGINT)
        return True

    monkeypatch.setattr(lines, "Input", Scripted)
    before = signal.getsignal(signal.SIGINT)
    screen = SimpleNamespace(note=lambda text, style="dim": notes.append(text))
    talker = SimpleNamespace(command=command)
    chat._converse(cast(chat.Chat, talker), cast(chat.Screen, screen), ChatOptions(history=False))
    assert signal.getsignal(signal.SIGINT) is before
    assert len(reads) == 4 and notes.count("Ctrl-C once more, Ctrl-D or /exit leaves") == 2


def test_piped_in_and_out_there_is_the_answer_alone(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "octavo", "chat", str(model), *OPTIONS, "--max-tokens", "4"]
    environment = {**os.environ, "OCTAVO_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, input=b"two\nlines\n", capture_output=True, timeout=PATIENCE_S, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b"\n") and b"\x1b" not in done.stdout
    assert b"cut after 4 tokens" in done.stderr and b"cut" not in done.stdout
    assert not (tmp_path / "chat-history").exists()
    done = subprocess.run(command, input=b" \n", capture_output=True, timeout=PATIENCE_S, env=environment)
    assert done.returncode == 2 and b"standard input is empty" in done.stderr and done.stderr.count(b"\n") == 1


def test_completions_and_what_is_said_about_them_go_apart(model: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "octavo", "complete", str(model), *OPTIONS, "--prompts", "ab|cd"),
            *("--max-tokens", "3", "--n", "2", "--temperature", "1", "--no-echo"),
        ],
        capture_output=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert b"tokens" not in done.stdout and done.stderr.count(b"3 tokens, length") == 4
    assert b"choice 2: 3 tokens" in done.stderr
