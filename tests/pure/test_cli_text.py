"""The command line's pure parts: prompts, streamed markdown, and one-line errors of the real command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.cli.chat import split_finished
from octavo.cli.complete import read_prompts
from octavo.errors import ConfigError


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


def _octavo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "octavo", *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "arguments,needle",
    [
        (["serve", "--port", "70000"], "--port: '70000'"),
        (["serve", "--api-key", ""], "--api-key: a value is empty"),
        (["serve", "--api-key-file", "/no/such/file"], "--api-key-file /no/such/file: cannot be read"),
        (["serve", "--ssl-keyfile", "key.pem"], "--ssl-keyfile needs --ssl-certfile"),
        (["complete", "/no/such/model", "--prompts", "x"], "/no/such/model"),
        (["engine", "--endpoint", "tcp://1.2.3.4:5"], "ipc://"),
    ],
)
def test_a_users_mistake_is_one_line(arguments: list[str], needle: str) -> None:
    done = _octavo(*arguments)
    assert done.returncode not in (0, 1)
    assert needle in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_every_command_has_help_with_environment_names() -> None:
    for command in (["serve"], ["engine"], ["chat"], ["complete"], ["pull"], ["doctor"], ["bench", "latency"]):
        done = _octavo(*command, "--help")
        assert done.returncode == 0, done.stderr
        assert "OCTAVO_MAX_NUM_SEQS" in done.stdout.replace("\n", "").replace(" ", "")
