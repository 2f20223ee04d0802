"""kill -9 of engines that serve models with caches of other kinds: recurrent states, windows, experts."""

from __future__ import annotations

from pathlib import Path

import pytest
from served import Octavo, wait_until
from test_families_together import FAMILIES
from tiny_models import make_reference, save_safetensors
from unharmed import unharmed

from octavo.client.fake import VOCAB_SIZE, write_byte_tokenizer

OPTIONS = ["--dtype", "float32", "--threads", "1", "--max-num-seqs", "4", "--state-checkpoint-interval", "64"]


@pytest.mark.long
@pytest.mark.parametrize("family", ["gemma3", "qwen3_moe", "qwen3_5"])
def test_a_kill_loses_nothing_of_any_family(folder: Path, family: str) -> None:
    where = folder / family
    where.mkdir()
    write_byte_tokenizer(where)
    sizes = {**FAMILIES[family], "vocab_size": VOCAB_SIZE, "max_position_embeddings": 512}
    save_safetensors(make_reference(family, **sizes), where)
    octavo = Octavo(folder, "serve", str(where), "--port", "0", *OPTIONS, OCTAVO_FAULTS="step_delay_ms=15")
    try:
        octavo.started()
        prompts = ["one begins", "one begins like another", "and a third that is longer than both of them " * 4]
        undisturbed = [stream.result() for stream in [octavo.stream(120, prompt=prompt) for prompt in prompts]]
        assert all(undisturbed)
        with unharmed(octavo):
            streams = [octavo.stream(120, prompt=prompt).begun() for prompt in prompts]
            for _ in range(2):
                octavo.child("octavo-engine").kill()
                wait_until(lambda: octavo.get("/ready")[0] == 503, "/ready to say 503")
                wait_until(lambda: octavo.get("/ready")[0] == 200, "a new engine")
            assert [stream.result() for stream in streams] == undisturbed
            assert all(stream.error is None and stream.finish_reason == "length" for stream in streams)
    finally:
        octavo.close()
