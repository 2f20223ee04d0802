"""Sampling defaults of a model: taken over where they are sane, refused by key where they cannot be."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ModelFileError
from octavo.modelfiles.files import ModelFiles, locate
from octavo.modelfiles.generation import end_ids, sampling_defaults
from octavo.types import SamplingParams


def folder(path: Path, text: str | None) -> Path:
    (path / "config.json").write_text("{}")
    if text is not None:
        (path / "generation_config.json").write_text(text)
    return path


def test_folder(tmp_path: Path) -> None:
    config = {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "do_sample": True,
        "max_length": 4096,
        "eos_token_id": [5, 6],
        "repetition_penalty": None,
    }
    found = sampling_defaults(locate(folder(tmp_path, json.dumps(config))))
    assert found == SamplingParams(temperature=0.6, top_p=0.9, top_k=20, stop_token_ids=[5, 6])


def test_folder_says_nothing(tmp_path: Path) -> None:
    assert sampling_defaults(locate(folder(tmp_path, None))) == SamplingParams()
    assert sampling_defaults(locate(folder(tmp_path, '{"eos_token_id": 3}'))) == SamplingParams(stop_token_ids=[3])


def test_end_ids_without_a_row_in_the_model_are_left_out(tmp_path: Path) -> None:
    """They can never be sampled; as stop ids they would be refused with every request."""
    files = locate(folder(tmp_path, '{"eos_token_id": [2, 99999, -1]}'))
    (tmp_path / "config.json").write_text('{"vocab_size": 100, "eos_token_id": [7, 100]}')
    assert sampling_defaults(files).stop_token_ids == [2]
    assert end_ids(tmp_path) == [2, 7]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"temperature": "hot"}', '{"top_p": 7}', '{"temperature": 1e999}', '{"eos_token_id": "x"}',
             "[" * 5000, '{"x": ' * 5000]
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_file_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelFileError, match=r"generation_config\.json"):
        sampling_defaults(locate(folder(tmp_path, text)))


def gguf(path: Path, metadata: dict[str, float | int]) -> Path:
    def key(name: str) -> bytes:
        return struct.pack("<Q", len(name)) + name.encode()

    def value(x: float | int) -> bytes:
        return struct.pack("<If", 6, x) if isinstance(x, float) else struct.pack("<Ii", 5, x)

    header = b"GGUF" + struct.pack("<IQQ", 3, 0, len(metadata))
    path.write_bytes(header + b"".join(key(k) + value(v) for k, v in metadata.items()))
    return path


def test_gguf(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "general.sampling.temp": 0.5,
        "general.sampling.top_k": 30,
        "general.sampling.penalty_repeat": 1.25,
    }
    found = sampling_defaults(locate(gguf(tmp_path / "a.gguf", values)))
    assert found == SamplingParams(temperature=0.5, top_k=30, repetition_penalty=1.25)
    assert sampling_defaults(locate(gguf(tmp_path / "b.gguf", {}))) == SamplingParams()
    for bad in (float("nan"), -1.0):
        with pytest.raises(ModelFileError, match=r"c\.gguf"):
            sampling_defaults(locate(gguf(tmp_path / "c.gguf", {"general.sampling.temp": bad})))


def test_a_whole_number_written_as_a_float_is_one(tmp_path: Path) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text('{"top_k": 50.0}')
    assert sampling_defaults(ModelFiles("m", tmp_path)).top_k == 50
    for value in ("50.5", '"x"', "1e400", "[1]"):
        file.write_text(f'{{"top_k": {value}}}')
        with pytest.raises(ModelFileError, match="sampling default top_k is") as refused:
            sampling_defaults(ModelFiles("m", tmp_path))
        assert "Expected" not in refused.value.message and "`" not in refused.value.message
