"""A model's tokenizer and template, loaded and used once in a child process before anybody relies on them: a file may
panic the library, crash it, or keep it busy for ever with the interpreter's lock in its hand.

Invariant: after LIMIT_S of the child's processor time there is an answer.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from contextlib import suppress
from types import TracebackType

import msgspec

from octavo.client.model import ClientModel
from octavo.errors import ConfigError, ModelFileError, OctavoError
from octavo.modelfiles.files import ModelFiles
from octavo.processes.spawn import spawn

LIMIT_S = 3
"""Of processor time. The largest vocabularies take 1 to 2 s."""
WALL_S = 120.0
"""On a machine so busy that its processor time takes long to come."""
TEXTS = (
    "Hello, world! It's 12:30, and 3.14 + 2 = 5.14 (about).\n\n\tdef f(x_1):\n\t\treturn [x_1] * 3\r\n",
    "".join(map(chr, range(1, 0x250))),
    "日本語のテキスト、한국어 텍스트, русский текст, नमस्ते, e\u0301 \U0001f600\u200d\U0001f600 \ufffd\u3000",
    *(char * 2000 + end for char in "aZ0 \n\t.-_é日" for end in ("", "!", "x")),
    "ab" * 1000,
    "a " * 1000,
)
"""What is encoded: a little of everything, and long runs of one thing, on which patterns may backtrack for ever."""


class _Job(msgspec.Struct, frozen=True):
    name: str
    address: str


class _Failure(msgspec.Struct, frozen=True):
    file: str
    message: str


class ModelTrial:
    """Begins at once; `finish` waits for the answer. A context: no child is left at its end."""

    def __init__(self, files: ModelFiles) -> None:
        """Raises ConfigError where the system has no process to give."""
        self._files = files
        try:
            self._child = spawn(
                "octavo.client.trial",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # a panic's own words
                own_session=True,
            )
        except OSError as error:
            raise ConfigError(f"no process can be started to try the tokenizer: {error.strerror}") from None
        stdin, self._child.stdin = self._child.stdin, None
        assert stdin is not None
        with suppress(BrokenPipeError), stdin:  # when it died at once, `finish` says so
            stdin.write(msgspec.json.encode(_Job(files.name, files.address)))

    def __enter__(self) -> ModelTrial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.kill()
        self._child.communicate()

    def finish(self) -> None:
        """Raises ModelFileError that says why the model's text side cannot be used."""
        try:
            answer, _ = self._child.communicate(timeout=WALL_S)
        except subprocess.TimeoutExpired:
            raise self._failed(f"has no answer after {WALL_S:g} s") from None
        code = self._child.returncode
        if code == 0:
            return
        if code == ModelFileError.exit_code and answer:
            failure = msgspec.json.decode(answer, type=_Failure)
            raise ModelFileError(failure.file, failure.message)
        if code in (-signal.SIGXCPU, -signal.SIGKILL):
            raise self._failed(f"takes more than {LIMIT_S} s of computing for a few short texts")
        raise self._failed(f"crashes its library ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})")

    def _failed(self, what: str) -> ModelFileError:
        return ModelFileError(self._files.path.name, f"its tokenizer {what}; the file is damaged, or made to do harm")


def main() -> None:
    """The child: the job comes by standard input, a failure goes to standard output."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=_Job)
    files = ModelFiles.at(job.address, job.name)
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        tokenizer = ClientModel.load(files).tokenizer
        for text in TEXTS:
            tokenizer.decode(tokenizer.encode(text))
            tokenizer.encode(text, parse_special=True)
    except OctavoError as error:
        file = error.file if isinstance(error, ModelFileError) else files.path.name
        failure = [text.encode(errors="replace").decode() for text in (file, error.message.removeprefix(f"{file}: "))]
        sys.stdout.buffer.write(msgspec.json.encode(_Failure(*failure)))
        sys.exit(ModelFileError.exit_code)
