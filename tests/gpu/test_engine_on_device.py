"""The engine on a device, end to end: tokens as Transformers has them, the same by graphs and without, overlapped and
not, whoever leaves and whatever has to be computed again."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import HAS_GPU, VOCAB, engine, prompts, save, shortfalls
from msgspec import structs
from tiny_models import make_reference

from octavo import SamplingParams, StructuredOutputs
from octavo.errors import OutOfMemory

LENGTHS = (1, 5, 40, 17, 64, 3, 9, 33, 2, 12)
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None},
    "qwen3": {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "head_dim": 16},
}
SETTINGS = (
    SamplingParams(temperature=0.9, top_p=0.9, top_k=20, seed=1),
    SamplingParams(temperature=1.0, repetition_penalty=1.3, presence_penalty=0.4, seed=2),
    SamplingParams(temperature=0.7, logprobs=3, logit_bias={3: 2.0, 40: -5.0}, seed=3),
    SamplingParams(temperature=0, min_tokens=4, stop_token_ids=list(range(0, 256, 5))),
    SamplingParams(temperature=1.0, min_p=0.05, seed=5, n=2),
    SamplingParams(temperature=0.8, seed=6, structured_outputs=StructuredOutputs(regex="[a-f]{3,9}-[0-9]+")),
    SamplingParams(temperature=1.2, seed=7, bad_words=["a", "bc"], frequency_penalty=0.3),
)


@pytest.fixture(scope="module", params=KINDS)
def reference(request: pytest.FixtureRequest) -> Any:
    return make_reference(request.param, **KINDS[request.param])


@pytest.fixture(scope="module")
def folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(reference, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_reference(**KINDS["llama"]), tmp_path_factory.mktemp("llama"))


def tokens(found: list[Any]) -> list[list[list[int]]]:
    return [[choice.token_ids for choice in output.outputs] for output in found]


def ends(found: list[Any]) -> list[list[Any]]:
    return [[(choice.finish_reason, choice.stop_reason, choice.text) for choice in output.outputs] for output in found]


def mixed(found: Any) -> list[Any]:
    """Every kind of request at once, more than there are rows."""
    asked = [GREEDY, *SETTINGS]
    params = [structs.replace(asked[i % len(asked)], max_tokens=7 + 5 * (i % 4)) for i in range(2 * len(LENGTHS))]
    return list(found.generate(prompts(LENGTHS * 2, seed=2), params))


def test_greedy_as_transformers(device: str, reference: Any, folder: Path) -> None:
    asked = prompts(LENGTHS)
    with engine(device, folder) as found:
        outputs = found.generate(asked, GREEDY)
    reference.to("cuda" if device == "cuda" else "cpu")
    for prompt, output in zip(asked, outputs, strict=True):
        assert len(output.token_ids) == 24
        assert max(shortfalls(reference, prompt, output.token_ids)) < 1e-3


@pytest.mark.long
@pytest.mark.skipif(HAS_GPU or find_spec("triton") is None, reason="there is a GPU, or no Triton")
def test_greedy_as_transformers_by_interpreted_kernels(tmp_path: Path) -> None:
    """All of the GPU's path without one, but for the device."""
    reference = make_reference("qwen3", **KINDS["qwen3"], num_hidden_layers=1)
    sizes = {"max_num_seqs": 2, "max_num_batched_tokens": 16, "max_model_len": 32}
    asked = prompts((5, 17))
    with engine("fake", save(reference, tmp_path), backend="triton", **sizes) as found:
        outputs = found.generate(asked, temperature=0, max_tokens=4, ignore_eos=True)
    for prompt, output in zip(asked, outputs, strict=True):
        assert max(shortfalls(reference, prompt, output.token_ids)) < 1e-3


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_as_transformers_in_bf16_at_true_sizes_of_heads(kind: str, tmp_path: Path) -> None:
    """Heads of 64 and 128, more layers, longer prompts: the kernels as large models use them."""
    wide = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8}
    sizes = {"num_key_value_heads": 2, "max_position_embeddings": 2048, "initializer_range": 0.05}
    heads = {"head_dim": 128 if kind == "qwen3" else 64}
    reference = make_reference(kind, **{**KINDS[kind], **wide, **sizes, **heads}).to(torch.bfloat16)
    folder = save(reference, tmp_path)
    asked = prompts((1, 700, 33, 1500, 128, 257))
    options = {"dtype": "bfloat16", "max_model_len": 2048, "max_num_batched_tokens": 512, "kv_cache_memory": "256MiB"}
    with engine("cuda", folder, block_size=16, **options) as found:
        outputs = found.generate(asked, GREEDY)
    reference.float().to("cuda")  # the same weights, computed finely
    worst = [max(shortfalls(reference, p, o.token_ids)) for p, o in zip(asked, outputs, strict=True)]
    assert max(worst) < 0.15, worst


def test_same_tokens_by_graphs_and_without_overlapped_and_not(device: str, llama: Path) -> None:
    with engine(device, llama) as found:
        wanted = mixed(found)
    for graphs, overlap in ((False, True), (True, False)):
        with engine(device, llama, graphs=graphs, overlap=overlap) as found:
            outputs = mixed(found)
        assert tokens(outputs) == tokens(wanted)
        assert ends(outputs) == ends(wanted)
    assert {reason for output in ends(wanted) for reason, *_ in output} == {"stop", "length"}


def test_streams_that_leave_change_nothing_for_others(device: str, llama: Path) -> None:
    asked = prompts(LENGTHS)
    with engine(device, llama) as found:
        wanted = [output.token_ids for output in found.generate(asked, GREEDY)]
        streams = [found.stream(prompt, GREEDY) for prompt in asked]
        for count, stream in enumerate(streams[::2]):
            for _ in range(2 * count):
                next(stream)
            stream.close()
        assert [stream.output().token_ids for stream in streams[1::2]] == wanted[1::2]
        assert found._engine._loop._scheduler.tables.num_held == 0
        assert [output.token_ids for output in found.generate(asked, GREEDY)] == wanted


def test_preempted_and_computed_again_with_the_same_tokens(device: str, llama: Path) -> None:
    asked = prompts(LENGTHS)
    params = [
        SamplingParams(temperature=0.8 * (i % 2), seed=i, max_tokens=40, ignore_eos=True) for i in range(len(asked))
    ]
    with engine(device, llama) as found:
        wanted = tokens(found.generate(asked, params))
    page = 2 * 2 * 8 * 2 * 8 * 4  # K and V, layers, tokens, heads, size of a head, bytes
    with engine(device, llama, kv_cache_memory=f"{20 * page}b") as found:
        assert found.info.num_blocks <= 20
        assert tokens(found.generate(asked, params)) == wanted
        assert found._engine._loop._scheduler.counters.preemptions > 0


def test_prefixes_from_the_cache_with_the_same_tokens(device: str, llama: Path) -> None:
    asked = [prompts((48,))[0] + tail for tail in prompts((1, 7, 16, 9))]
    with engine(device, llama) as found:
        wanted = tokens(found.generate(asked, GREEDY))
    with engine(device, llama, prefix_cache=True) as found:
        assert tokens(found.generate(asked[:1], GREEDY)) == wanted[:1]
        outputs = found.generate(asked, GREEDY)
        assert tokens(outputs) == wanted and outputs[-1].metrics.cached_tokens >= 48


def test_scores_and_embeddings(device: str, llama: Path) -> None:
    """What needs the hidden states of a prompt runs beside what does not."""
    asked = prompts(LENGTHS)
    with engine(device, llama) as found, engine(device, llama, graphs=False, overlap=False) as other:
        scored = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, prompt_logprobs=1, logprobs=2)
        params = [scored if i % 3 else GREEDY for i in range(len(asked))]
        ours, wanted = found.generate(asked, params), other.generate(asked, params)
        assert tokens(ours) == tokens(wanted)
        for one, two in zip(ours, wanted, strict=True):
            assert (one.prompt_logprobs is None) == (two.prompt_logprobs is None)
            for mine, theirs in zip(one.prompt_logprobs or (), two.prompt_logprobs or (), strict=True):
                assert mine is None or mine.logprob == pytest.approx(theirs.logprob, abs=1e-3)
        for mine, theirs in zip(found.embed(asked), other.embed(asked), strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.usefixtures("gpu")
def test_what_does_not_fit_is_said_before_it_is_tried(llama: Path) -> None:
    with pytest.raises(OutOfMemory, match="kv-cache-memory"), engine("cuda", llama, kv_cache_memory="4000GiB"):
        pass


@pytest.mark.usefixtures("gpu")
def test_the_demo_model_knows_the_capital_of_france(demo: Path) -> None:
    with engine("cuda", demo, dtype="bfloat16", max_model_len=512, block_size=16, kv_cache_memory="256MiB") as found:
        (output,) = found.generate("The capital of France is", temperature=0, max_tokens=8)
        assert "Paris" in output.text


@pytest.fixture
def demo(request: pytest.FixtureRequest) -> Path:
    from octavo.errors import OctavoError

    try:
        return Path(request.getfixturevalue("demo_gguf"))
    except OctavoError as error:
        pytest.skip(f"the demo model is not here, nor a network: {error}")
