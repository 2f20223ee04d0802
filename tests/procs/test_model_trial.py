"""Tokenizers that are damaged or made to do harm end a start with one line, before a port opens."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served import OPTIONS, Octavo
from tiny import write_tiny_model

from octavo.client.trial import LIMIT_S, ModelTrial
from octavo.errors import ModelFileError
from octavo.modelfiles.files import locate


def _no_unknown(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"] = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {"a": 0},
    }


def _no_word_at_all(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"] = {"type": "Unigram", "unk_id": None, "vocab": [["\u010a", -1.0]], "byte_fallback": False}


def _panics(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"].update(continuing_subword_prefix="€€€€€€€€€€", vocab={"a": 0, "b": 1, "ab": 2}, merges=["a b"])


def _split(pattern: str) -> Callable[[dict[str, Any]], None]:
    def change(tokenizer: dict[str, Any]) -> None:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, tokenizer["pre_tokenizer"]]}

    return change


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no unknown token": (_no_unknown, r"tokenizer\.json: not a usable tokenizer: .*\[UNK\]"),
    "no word": (_no_word_at_all, "unk_id"),
    "a panic": (_panics, r"tokenizer\.json: not a usable tokenizer: "),
    "a pattern that gives up": (_split("(a+)+[xy]"), "fails on this text: Onig: Regex search error"),
    "a pattern that never ends": (_split("a*a*(?<=b)"), f"takes more than {LIMIT_S} s of computing for a few short"),
}


def hostile(folder: Path, case: str) -> Path:
    path = write_tiny_model(folder) / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    HOSTILE[case][0](tokenizer)
    path.write_text(json.dumps(tokenizer))
    return folder


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tokenizer_is_a_sentence(tmp_path: Path, case: str) -> None:
    before = _seconds_of_children()
    with ModelTrial(locate(hostile(tmp_path / "m", case))) as trial, pytest.raises(ModelFileError) as error:
        trial.finish()
    assert re.search(HOSTILE[case][1], error.value.message) and "\n" not in error.value.message
    assert _seconds_of_children() - before < LIMIT_S + 2


def test_a_good_one_passes_and_one_that_is_not_waited_for_is_gone(tmp_path: Path) -> None:
    files = locate(write_tiny_model(tmp_path / "m"))
    with ModelTrial(files) as trial:
        trial.finish()
    with ModelTrial(files) as trial:
        child = trial._child
    assert child.returncode is not None


@pytest.mark.parametrize("case", ["a panic", "a pattern that never ends"])
def test_serve_ends_with_one_line_and_no_port(tmp_path: Path, case: str) -> None:
    octavo = Octavo(tmp_path, "serve", str(hostile(tmp_path / "m", case)), "--port", "0", *OPTIONS)
    try:
        assert octavo.ended(60) == 3, octavo.output
        assert "listening" not in octavo.output and "Traceback" not in octavo.output
        assert "ready after" not in re.sub("engine: ready after", "", octavo.output)
        errors = [line for line in octavo.output.splitlines() if "error:" in line or "panicked" in line]
        assert len(errors) == 1 and re.search(HOSTILE[case][1], errors[0]), octavo.output
    finally:
        octavo.close()
