"""Starts that cannot work: exit within seconds, one line that says what to mend, nothing left behind."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_bytes import File
from served import Octavo
from tiny import write_tiny_model


class _Start:
    """`octavo serve ARGS`, which is to end by itself."""

    def __init__(self, folder: Path, *args: str) -> None:
        self._octavo = Octavo(folder, "serve", *args, "--port", "0")

    def refused(self, code: int) -> str:
        """The one line with which it ends."""
        try:
            assert self._octavo.ended() == code, self._octavo.output
            lines = [line for line in self._octavo.output.splitlines() if "error:" in line]
            assert len(lines) == 1 and "Traceback" not in self._octavo.output, self._octavo.output
            return lines[0]
        finally:
            self._octavo.close()


def _cut(model: Path) -> str:
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)
    return "model.safetensors"


def _header_too_long(model: Path) -> str:
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[:8] = (2**63).to_bytes(8, "little")
    weights.write_bytes(data)
    return "model.safetensors"


def _tensor_missing(model: Path) -> str:
    weights = model / "model.safetensors"
    data = weights.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["model.layers.0.mlp.up_proj.other"] = header.pop("model.layers.0.mlp.up_proj.weight")
    raw = json.dumps(header).encode()
    weights.write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + size :])
    return "up_proj"


def _configure(model: Path, **values: int) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **values}))


def _shape_differs(model: Path) -> str:
    _configure(model, intermediate_size=48)
    return "mlp"


def _config_is_no_json(model: Path) -> str:
    (model / "config.json").write_text('{"architectures": [')
    return "config.json"


def _no_heads(model: Path) -> str:
    _configure(model, num_attention_heads=0)
    return "num_attention_heads"


def _tokenizer_is_broken(model: Path) -> str:
    (model / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE", "vocab": 7}}')
    return "tokenizer.json"


def _shard_outside(model: Path) -> str:
    (model / "model.safetensors").rename(model.parent / "outside.safetensors")
    index = {"weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return "model.safetensors.index.json"


def _pickled(model: Path) -> str:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    return "safetensors"


CORRUPTIONS: list[Callable[[Path], str]] = [
    _cut,
    _header_too_long,
    _tensor_missing,
    _shape_differs,
    _config_is_no_json,
    _no_heads,
    _tokenizer_is_broken,
    _shard_outside,
    _pickled,
]


@pytest.mark.long
def test_corrupt_models(tmp_path: Path) -> None:
    """All at once: most of the time of each is the start of Python."""
    started: list[tuple[_Start, str]] = []
    for corrupt in CORRUPTIONS:
        model = write_tiny_model(tmp_path / corrupt.__name__ / "model")
        name = corrupt(model)
        started.append((_Start(tmp_path, str(model)), name))
    ggufs = {"cut": File().build()[:-30], "text": b"not a model", "counts": File(num_tensors=2**62).build()}
    for name, data in ggufs.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        started.append((_Start(tmp_path, str(path)), path.name))
    for start, name in started:
        assert name in start.refused(3)


def test_corrupt_model_ends_the_start_soon(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    name = _cut(model)
    before = _computed()
    assert name in _Start(tmp_path, str(model)).refused(3)
    assert _computed() - before < 30  # seconds that its processes computed; 1 on one machine, 6 on a crowded one


def _computed() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_wrong_options_and_folders(tmp_path: Path) -> None:
    model = str(write_tiny_model(tmp_path / "model"))
    cases: list[tuple[list[str], str, int]] = [
        ([model, "--max-num-seqs", "0"], "--max-num-seqs", 2),
        ([model, "--host", "nowhere.invalid"], "--host", 2),
        ([str(tmp_path / "nothing-here")], "nothing-here", 4),
        (["--connect", "tcp://127.0.0.1:1"], "endpoint", 2),
    ]
    started = [(_Start(tmp_path, *args), name, code) for args, name, code in cases]
    for start, name, code in started:
        assert name in start.refused(code)
