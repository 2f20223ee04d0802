"""The command line's pure parts: prompts, chat messages and commands, streamed markdown; --help and one-line errors of
the real command."""

from __future__ import annotations

import io
import json
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE_S
from rich.console import Console

from octavo.cli import processes, terminal
from octavo.cli.app import main
from octavo.cli.complete import read_prompts
from octavo.cli.lines import KEPT, FileHistory, is_open, message
from octavo.cli.table import numbers_by_type, table
from octavo.cli.talk import COMMANDS, command, cut_note, help_text, misspelled, split_finished
from octavo.errors import ConfigError
from octavo.supervisor.title import Title, read_title
from octavo.types import Metrics


def test_numbers_of_each_type() -> None:
    assert numbers_by_type({"Q4_1": 106_200_000, "F32": 35_136}) == "35 k F32, 106.2 M Q4_1"


@given(st.text(alphabet="a`\n ~#", max_size=80))
def test_split_loses_nothing_and_never_cuts_a_fence(text: str) -> None:
    done, rest = split_finished(text)
    assert done + rest == text
    assert sum(line.strip().startswith(("```", "~~~")) for line in done.splitlines()) % 2 == 0


def test_split_keeps_an_open_fence_together() -> None:
    assert split_finished("one\n\n```\na\n\nb") == ("one\n\n", "```\na\n\nb")


def test_prompts_from_both_places(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("three\n\nfour\n")
    assert read_prompts("one | two =", file) == ["one", "two =", "three", "four"]


@pytest.mark.parametrize("prompts", [None, "", " | "])
def test_no_prompt_is_an_error(prompts: str | None) -> None:
    with pytest.raises(ConfigError, match="no prompt"):
        read_prompts(prompts, None)


def test_prompt_file_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--prompt-file"):
        read_prompts(None, tmp_path / "none")


# --- the chat's messages


@pytest.mark.parametrize(
    "line,expected",
    [
        ("/help", ("/help", "")),
        ("/?", ("/help", "")),
        ("/system You are brief.", ("/system", "You are brief.")),
        ("/system two\nlines", ("/system", "two\nlines")),
        ("/quit", ("/exit", "")),
        ("/usr/bin/python3 --version prints this", None),
        ("/usr", None),
        ("/help me with this", None),
        ("/stats\nand more", None),
        (" /help", None),
        ("help", None),
    ],
)
def test_only_known_commands_are_commands(line: str, expected: tuple[str, str] | None) -> None:
    assert command(line) == expected


@pytest.mark.parametrize(
    "line,near", [("/rest", "/reset"), ("/hlep", "/help"), ("/stat", "/stats"), ("/sytem", "/system")]
)
def test_a_misspelled_command_gets_a_suggestion(line: str, near: str) -> None:
    assert f"did you mean {near}?" in (misspelled(line) or "")


@pytest.mark.parametrize(
    "line", ["/usr", "/etc/passwd", "/tmp", "/", "//", "/help", " /rest", "/rest of it", "/home", "/bin"]
)
def test_what_only_begins_like_a_command_is_a_message(line: str) -> None:
    assert misspelled(line) is None


def test_help_names_every_command() -> None:
    assert all(name in help_text() for name in COMMANDS)


@pytest.mark.parametrize(
    "typed,is_more,sent",
    [
        ("one line", False, "one line"),
        ("first\\", True, "first"),
        ("first\\\nsecond", False, "first\nsecond"),
        ('"""', True, '"""'),
        ('"""a\nb', True, '"""a\nb'),
        ('"""\na\n\nb\n"""', False, "a\n\nb"),
        ('say """this""" please', False, 'say """this""" please'),
        ("a\nb\nc", False, "a\nb\nc"),
    ],
)
def test_messages_of_several_lines(typed: str, is_more: bool, sent: str) -> None:
    assert (is_open(typed), message(typed)) == (is_more, sent)


def test_why_an_answer_was_cut() -> None:
    metrics = Metrics(prompt_tokens=100, completion_tokens=28)
    assert cut_note("stop", 28, metrics) is None
    assert "after 28 tokens" in (cut_note("length", 28, metrics) or "")
    assert "context of 128 tokens is full; /reset" in (cut_note("length", 1024, metrics) or "")


def test_history_is_private_and_survives(tmp_path: Path) -> None:
    path = tmp_path / "new" / "chat-history"
    history = FileHistory(path)
    for text in ("first", " not kept", "two\nlines", "half a pair \ud800"):
        history.store_string(text)
    assert list(FileHistory(path).load_history_strings()) == ["half a pair ?", "two\nlines", "first"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with path.open("ab") as file:
        file.write(b"not json\n")
    FileHistory(path).store_string("last")
    assert next(iter(FileHistory(path).load_history_strings())) == "last"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_history_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "chat-history"
    path.write_text("".join(f'"{i}"\n' for i in range(2 * KEPT + 1)))
    assert len(list(FileHistory(path).load_history_strings())) == KEPT
    assert len(path.read_text().splitlines()) == KEPT and path.read_text().endswith(f'"{2 * KEPT}"\n')


def test_history_that_cannot_be_kept_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history = FileHistory(tmp_path / "file" / "chat-history")
    history.store_string("x")
    assert list(history.load_history_strings()) == []


# --- the screen


def test_a_models_text_commands_no_terminal() -> None:
    assert visible_ok(terminal.visible("a\x1b[2Jb\x07c\x9bd\r\ne\tf")) == "a\N{REPLACEMENT CHARACTER}[2Jb"
    assert "\x1b" not in _rendered("\x1b]0;title\x07 *x*")


def visible_ok(text: str) -> str:
    assert text.endswith("e\tf") and "\n" in text
    return text[:6]


def _rendered(text: str) -> str:
    console = Console(file=io.StringIO(), width=60, force_terminal=False)
    console.print(terminal.markdown(text))
    out = console.file
    assert isinstance(out, io.StringIO)
    return out.getvalue()


def test_html_of_a_model_is_shown() -> None:
    assert "<b>bold</b>" in _rendered("<b>bold</b> **x**") and "<div>" in _rendered("<div>\n\ntext\n\n</div>")


@pytest.mark.parametrize(
    "keys,text",
    [
        (b"next question", "next question"),
        (b"line\rmore\r", "line\nmore"),
        (b"\x1b[200~pasted\rtext\x1b[201~", "pasted\ntext"),
        (b"a\x1b[A\x1bOPb\x7fc", "ac"),
        (b"\x04", ""),
        ("é".encode(), "é"),
        (b"\xff\x1b", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_what_is_typed_during_an_answer_waits_as_text(keys: bytes, text: str) -> None:
    assert terminal.as_typed(keys) == text


def test_a_region_is_taken_away_as_many_rows_as_it_has_become(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that gets narrower breaks the lines that are there into more rows."""
    console = Console(file=io.StringIO(), width=40, height=10, force_terminal=True, color_system=None)
    region = terminal.Region(console)
    region.draw("x" * 30 + "\n" + "y" * 12, now=True)
    out = console.file
    assert isinstance(out, io.StringIO)
    assert out.getvalue() == "x" * 30 + "\n" + "y" * 12
    console.width = 20
    region.clear()
    assert out.getvalue().endswith("\r\x1b[2A\x1b[J")  # three rows by now
    region.clear()
    assert out.getvalue().count("\x1b[J") == 1
    region.draw("\n".join(str(i) for i in range(50)), now=True)
    assert out.getvalue().endswith("\n".join(str(i) for i in range(41, 50)))  # the end, as much as the screen holds


# --- tables


def test_tables_align_and_end_without_blanks() -> None:
    assert table(("A", "LONG"), [("xx", "1"), ("y", "")]) == "A   LONG\nxx  1\ny"


def test_a_supervisors_title_says_where_it_serves_what() -> None:
    assert read_title(["octavo-supervisor http://127.0.0.1:8000 my model.gguf"]) == Title(
        "http://127.0.0.1:8000", "my model.gguf"
    )
    for other in ([], ["octavo-supervisor"], ["octavo-server"], ["vim octavo-supervisor x y"]):
        assert read_title(other) is None


@pytest.mark.parametrize("seconds,text", [(0, "0s"), (59, "59s"), (3600, "1h"), (3725, "1h 2m"), (90061, "1d 1h")])
def test_uptime(seconds: int, text: str) -> None:
    assert processes.uptime(seconds) == text


# --- the real command


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def octavo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """The command in this process, with an empty cache."""
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))

    def run(*arguments: str, columns: int = 100) -> Done:
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return Done(ended.value.code if isinstance(ended.value.code, int) else 0, *capsys.readouterr())

    return run


MISTAKES = [
    (["serve", "--port", "70000"], "--port: '70000'"),
    (["serve", "--api-key", ""], "--api-key: a value is empty"),
    (["serve", "--prot", "1"], "no option --prot; did you mean --port?"),
    (["serve", "--qqqqq"], "no option --qqqqq; `octavo serve --help` lists them"),
    (["serve", "--port"], "option '--port' requires an argument"),
    (["serve", "a", "b"], "unexpected extra argument"),
    (["sevre"], "no command 'sevre'; did you mean serve?"),
    (["qqq"], "no command 'qqq'; `octavo --help` lists them"),
    (["bench", "latancy"], "no command 'latancy'; did you mean latency?"),
    (["complete", "/no/such/model", "--prompts", "x"], "/no/such/model"),
    (["complete", "smolm2-135m", "--prompts", "x"], "; did you mean smollm2-135m?"),
    (["complete", "--temperature", "x", "--prompts", "x"], "--temperature: 'x' is not valid; give a number from 0"),
    (["engine", "--endpoint", "tcp://1.2.3.4:5"], "ipc://"),
    (["engine"], "--endpoint: is missing; give ipc://PATH"),
    (["rm", "smolm"], "no model 'smolm' in the cache"),
    (["rm"], "missing argument"),
    (["show", "org/name"], "org/name is not here; `octavo pull org/name` fetches it"),
    (["show", "nothing"], "nothing is not here; `octavo list` lists the models that are"),
    (["show", "smolm2-135m"], "smolm2-135m is not here; did you mean smollm2-135m?"),
]


@pytest.mark.parametrize("arguments,needle", MISTAKES)
def test_a_users_mistake_is_one_line(arguments: list[str], needle: str, octavo: Run) -> None:
    done = octavo(*arguments)
    assert done.code not in (0, 1)
    assert needle in done.err
    assert len(done.err.strip().splitlines()) == 1 and done.err.startswith("octavo: error: ")
    assert done.out == ""


@pytest.mark.parametrize(
    "arguments,needle",
    [
        (["serve", "--api-key-file", "/no/such/file"], "--api-key-file /no/such/file: cannot be read"),
        (["serve", "--ssl-keyfile", "key.pem"], "--ssl-keyfile needs --ssl-certfile"),
        (["serve", "--lgo-level", "debug"], "no option --lgo-level; did you mean --log-level?"),
    ],
)
def test_a_mistake_in_a_process_of_its_own_is_one_line(arguments: list[str], needle: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "octavo", *arguments], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 2
    assert needle in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


COMMAND_LINES = (
    *(["serve"], ["engine"], ["chat"], ["complete"], ["pull"], ["doctor"], ["list"], ["rm"], ["ps"], ["show"]),
    *(["bench", "latency"], ["bench", "throughput"], ["bench", "serve"]),
)


@pytest.mark.parametrize("line", COMMAND_LINES)
@pytest.mark.parametrize("columns", [100, 40])
def test_every_command_has_help_in_one_style(line: list[str], columns: int, octavo: Run) -> None:
    """Groups with headings; the environment is told once; nothing of typer's own words for types."""
    done = octavo(*line, "--help", columns=columns)
    assert done.code == 0 and done.err == ""
    words = "".join(done.out.split())
    assert "OCTAVO_MAX_NUM_SEQSfor--max-num-seqs" in words and "Settings:" in done.out
    assert f"Usage:octavo{''.join(line)}" in words
    for foreign in ("INTEGER", "<int>", "<str>", "RANGE", "--isq", "None", "^("):
        assert foreign not in done.out, foreign


def test_help_shows_groups_and_defaults(octavo: Run) -> None:
    shown = octavo("chat", "--help").out
    headings = [line.rstrip(":") for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings == ["Arguments", "Conversation", "Sampling", "Output", "Model", "Computing", *headings[6:]]
    assert headings[-1] == "Settings" and len(set(headings)) == len(headings)
    assert "[default: 1024]" in shown and "--[no-]history" in shown


@pytest.mark.parametrize("line", [[], ["bench"]])
def test_without_a_command_there_is_help(line: list[str], octavo: Run) -> None:
    done = octavo(*line)
    assert done.code == 0 and "Commands:" in done.out and done.err == ""


def test_list_of_an_empty_cache(octavo: Run) -> None:
    assert "no models in" in octavo("list").out
    assert json.loads(octavo("list", "--json").out) == []


@pytest.mark.parametrize(
    "words,completed",
    [
        (["ser"], ["serve"]),
        (["serve", "--log-f"], ["--log-format"]),
        (["serve", "--dtype", "bfl"], ["bfloat16"]),
        (["chat", "smol"], ["smollm2-135m"]),
    ],
)
def test_the_shell_completes(
    words: list[str], completed: list[str], octavo: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_OCTAVO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(("octavo", *words)))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    assert octavo().out.split() == completed
