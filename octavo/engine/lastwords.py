"""What an engine that breaks down leaves for the next one at its endpoint: a file beside the socket with its stacks.

Owned by engine/process.py. The next engine logs it and thereby knows an engine that a request may have broken from one
that was killed from outside. Invariants: what the file holds was written by a fatal signal, a hang or an exception; an
engine that ends in good order removes it.
"""

from __future__ import annotations

import faulthandler
import os
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from octavo.wire.endpoint import CRASH_SUFFIX, check_endpoint

MOST_CHARACTERS = 20_000


class LastWords:
    def __init__(self, endpoint: str) -> None:
        self._path = check_endpoint(endpoint) + CRASH_SUFFIX
        self._file: TextIO | None = None

    def of_predecessor(self) -> str:
        """What the engine before has left: nothing, when it was killed, or there was none."""
        try:
            with os.fdopen(os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW), errors="replace") as file:
                return file.read(MOST_CHARACTERS).strip()
        except OSError:
            return ""

    def begin(self) -> None:
        """This engine is ready. From now on a fatal signal writes all stacks."""
        with suppress(OSError):  # a folder that lets us make a socket but no file: then nothing is left behind
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            self._file = os.fdopen(fd, "w")  # open until this process ends, however it ends
            faulthandler.enable(self._file)

    def write(self, words: str) -> None:
        if self._file is not None:
            self._file.write(words)
            self._file.flush()

    def end(self) -> None:
        """The engine ends in good order."""
        if self._file is not None:
            faulthandler.disable()
            self._file.close()
            self._file = None
            with suppress(OSError):
                Path(self._path).unlink()
