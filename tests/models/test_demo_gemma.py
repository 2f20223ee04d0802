"""Gemma 3 270m from its GGUF file: greedy text of the native kernels in f32 token for token that of Transformers on the
dequantized weights; as served nearly its distributions; the tokens of a conversation."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from test_demo_model import NATIVE

from octavo import LLM, SamplingParams
from octavo.modelfiles.files import locate
from octavo.text.template import ChatTemplate
from octavo.text.tokenizer import Tokenizer
from octavo.types import Message

pytestmark = pytest.mark.long

PROMPTS = ["The capital of France is", "def fibonacci(n):", "La capitale de l'Espagne est", "Dear Sir or Madam,"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n{{ message['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""What Gemma 3's template comes to for texts alone; this file holds none."""


@pytest.fixture(scope="module")
def reference(gemma_gguf: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_pretrained(
            gemma_gguf.parent, gguf_file=gemma_gguf.name, dtype=torch.float32
        ).eval()


@pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_greedy_text_is_that_of_transformers(gemma_gguf: Path, reference: Any, dtype: Any) -> None:
    """One forward over prompt + output: each token must be the most likely after those before it. A prompt that is
    longer than the window is among them."""
    prompts = [*PROMPTS, " ".join(PROMPTS) * 30]
    with LLM(model=str(gemma_gguf), dtype=dtype, max_model_len=1024, threads=2) as llm:
        outputs = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True))
    for output in outputs:
        prompt, found = output.prompt_token_ids, output.outputs[0].token_ids
        with torch.inference_mode():
            logits = reference(torch.tensor([[*prompt, *found]])).logits[0, len(prompt) - 1 : -1]
        if dtype == "float32":
            assert logits.argmax(-1).tolist() == found
        else:  # what it chose is never far from the best
            chosen = logits.gather(1, torch.tensor(found).unsqueeze(1)).squeeze(1)
            assert (logits.amax(-1) - chosen).max() < 1.0
    assert len(outputs[-1].prompt_token_ids) > 600


def test_a_conversation_has_its_control_tokens(gemma_gguf: Path) -> None:
    files = locate(gemma_gguf)
    tokenizer = Tokenizer.load(files)
    assert ChatTemplate.load(files, tokenizer).source is None
    template = ChatTemplate({"default": TEMPLATE}, tokenizer)
    ids = template.encode([Message("user", "Hi <end_of_turn>")], add_generation_prompt=True)
    start, end = (tokenizer.special_id(f"<{what}_of_turn>") for what in ("start", "end"))
    assert ids[:2] == [tokenizer.bos_id, start] and ids.count(start) == 2 and ids.count(end) == 1
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert text == "<bos><start_of_turn>user\nHi <end_of_turn><end_of_turn>\n<start_of_turn>model\n"
