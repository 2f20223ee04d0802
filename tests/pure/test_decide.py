"""One decision for `octavo doctor` and for a start: what is refused there is refused here, with the same words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf_bytes import File
from test_resolve import HARDWARE

from octavo.cli import doctor
from octavo.config.decide import count_weights, decide, weight_bytes
from octavo.config.engine import EngineConfig, ServerConfig
from octavo.config.memory import kv_bytes_per_token
from octavo.errors import ConfigError, ModelFileError, OctavoError, OutOfMemory
from octavo.modelfiles import gguf
from octavo.modelfiles.files import ModelFiles, locate
from octavo.supervisor import supervisor

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}


def model(folder: Path, generation: dict[str, Any] | None = None, **changes: Any) -> ModelFiles:
    (folder / "config.json").write_text(json.dumps({**SHAPE, **changes}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return locate(folder)


def options(folder: Path, **more: Any) -> EngineConfig:
    return EngineConfig(model=str(folder), load_format="dummy", **more)


REFUSED: list[tuple[dict[str, Any], dict[str, Any], type[OctavoError], str]] = [
    ({}, {"kv_cache_memory": "100KiB"}, OutOfMemory, "holds 400 tokens, but one sequence of max_model_len 2048"),
    ({}, {"max_model_len": 4096}, ConfigError, "--max-model-len 4096"),
    ({"max_position_embeddings": 1 << 29}, {}, OutOfMemory, "KV pages do not fit"),
    ({"generation": {"top_k": [1]}}, {}, ModelFileError, "generation_config.json"),
    ({"hidden_size": 0}, {}, ModelFileError, "hidden_size"),
]


@pytest.mark.parametrize(("changes", "given", "error", "words"), REFUSED)
def test_doctor_and_a_start_refuse_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    given: dict[str, Any],
    error: type[OctavoError],
    words: str,
) -> None:
    model(tmp_path, **changes)
    config = options(tmp_path, **given)
    monkeypatch.setattr(doctor, "detect", lambda: HARDWARE)
    monkeypatch.setattr(supervisor, "detect", lambda: HARDWARE)
    with pytest.raises(error, match=words) as told:
        doctor.run_doctor(config)
    monkeypatch.setattr(supervisor, "Supervisor", lambda *_: pytest.fail("something was started"))
    with pytest.raises(error) as refused:
        supervisor.run(config, ServerConfig(port=0))
    assert refused.value.message == told.value.message


def test_what_fits_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "detect", lambda: HARDWARE)
    model(tmp_path)
    doctor.run_doctor(options(tmp_path, kv_cache_memory="2MiB"))
    assert "yes" in capsys.readouterr().out


def test_memory_is_counted_as_the_worker_counts_it(tmp_path: Path) -> None:
    files = model(tmp_path)
    config = options(tmp_path)
    counted = decide(config, HARDWARE, files)
    weights = weight_bytes(counted.resolved, count_weights(files, counted.facts, counted.resolved), packed=True)
    page = kv_bytes_per_token(counted.resolved, counted.facts) * 16
    least = weights + 128 * page + (1 << 29)
    decide(config, replace(HARDWARE, memory_available=least), files)
    with pytest.raises(OutOfMemory, match="of KV pages do not fit"):
        decide(config, replace(HARDWARE, memory_available=least - page), files)


def test_a_header_is_read_once_while_somebody_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(File().build())
    held = gguf.read_header(path)
    monkeypatch.setattr(gguf, "_parse", lambda reader: pytest.fail("read again"))
    assert gguf.read_header(path) is held
    monkeypatch.undo()
    path.write_bytes(File(version=2).build())
    assert gguf.read_header(path) is not held
