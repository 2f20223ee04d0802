"""The chat's input line: one message with as many lines as it likes, from the keyboard, by a paste, or from before.

Enter sends, except in open triple quotes or after a backslash. Invariants: a paste is never sent by the line breaks in
it; the file of what was typed is readable by its owner only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec
from prompt_toolkit import PromptSession
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output

QUOTES = '"""'
KEPT = 1000
"""Messages that are known again in the next session."""


def is_open(text: str) -> bool:
    """Whether the message goes on after an Enter."""
    return text.count(QUOTES) % 2 == 1 or text.endswith("\\")


def message(text: str) -> str:
    """What is sent of what was typed: without quotes around it, and backslashes at the ends of lines."""
    stripped = text.strip()
    if len(stripped) >= 2 * len(QUOTES) and stripped.startswith(QUOTES) and stripped.endswith(QUOTES):
        return stripped[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text.replace("\\\n", "\n").removesuffix("\\")


class FileHistory(History):
    """Messages in a file, one JSON string a line; what begins with a blank is not kept. A file that cannot be read or
    written is none."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def load_history_strings(self) -> Iterable[str]:
        """The newest first."""
        try:
            lines = self._path.read_bytes().splitlines()
        except OSError:
            return []
        found = []
        for line in reversed(lines[-KEPT:]):
            try:
                found.append(msgspec.json.decode(line, type=str))
            except msgspec.DecodeError:
                continue
        if len(lines) > 2 * KEPT:
            self._rewrite(lines[-KEPT:])
        return found

    def store_string(self, string: str) -> None:
        if string.startswith(" "):
            return
        line = msgspec.json.encode(string.encode(errors="replace").decode()) + b"\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._write(line, os.O_APPEND, self._path)
        except OSError:
            pass

    def _rewrite(self, lines: list[bytes]) -> None:
        draft = self._path.with_name(self._path.name + ".new")
        try:
            self._write(b"\n".join(lines) + b"\n", os.O_TRUNC, draft)
            draft.replace(self._path)
        except OSError:
            pass

    def _write(self, data: bytes, how: int, path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600)
        try:
            os.fchmod(fd, 0o600)
            os.write(fd, data)
        finally:
            os.close(fd)


class Input:
    """Reads messages from the terminal. `history`: None keeps them for this session only."""

    def __init__(self, history: Path | None) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=None if history is None else FileHistory(history),
            multiline=True,
            key_bindings=_keys(),
            prompt_continuation="  ",
            enable_suspend=True,
            # Answers may go into a file: the prompt is for whoever types.
            output=None if sys.stdout.isatty() else create_output(stdout=sys.stderr),
        )

    def read(self, begun: str = "") -> str:
        """One message; `begun` stands there already. Raises EOFError (Ctrl-D) and KeyboardInterrupt (Ctrl-C) where
        nothing has been typed."""
        return self._session.prompt("> ", default=begun)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        # More keys that are there already: lines pasted into a terminal that does not say where a paste ends.
        if is_open(buffer.document.text_before_cursor) or event.app.key_processor.input_queue:
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return keys
