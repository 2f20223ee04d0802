"""Small tokenizers for tests: byte-level BPE and SentencePiece, as tokenizer.json folders and as GGUF metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from octavo.modelfiles.files import ModelFiles
from octavo.text.gguf_tokenizer import parts_from_metadata
from octavo.text.parts import METASPACE, byte_alphabet
from octavo.text.tokenizer import Tokenizer

SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"]
PIECES = [
    "h e",
    "l l",
    "he ll",
    "hell o",
    "Ġ w",
    "Ġw o",
    "r l",
    "Ġwo rl",
    "Ġworl d",
    "Ġ Ġ",
    "ð Ł",
    "ðŁ ĺ",
    "1 2",
    "Ċ Ċ",
]


def byte_level_metadata(**changes: Any) -> dict[str, Any]:
    """GGUF metadata of a byte-level BPE: five control tokens, `<think>` user-defined, 256 bytes, a few merges."""
    tokens = [*SPECIALS, "<think>", *byte_alphabet(), *("".join(m.split(" ")) for m in PIECES), "[PAD0]"]
    types = [3] * 5 + [4] + [1] * (256 + len(PIECES)) + [5]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": PIECES,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    metadata.update({f"tokenizer.ggml.{key}": value for key, value in changes.items()})
    return {key: value for key, value in metadata.items() if value is not None}


def byte_level(**changes: Any) -> Tokenizer:
    return Tokenizer(parts_from_metadata("tiny.gguf", byte_level_metadata(**changes)))


WORDS = ["hello", "world", "the", "a", "in", "ing", "é", "12"]


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    """GGUF metadata of a SentencePiece vocabulary: unknown, BOS, EOS, bytes, letters, prefixes of a few words."""
    pieces = [METASPACE, *"abcdefghijklmnopqrstuvwxyz", "é", "1", "2", METASPACE * 2]
    for word in (METASPACE + w for w in WORDS):
        pieces += [word[:n] for n in range(2, len(word) + 1)]
    pieces = [*dict.fromkeys(pieces)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(pieces)],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(pieces))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    metadata.update({f"tokenizer.ggml.{key}": value for key, value in changes.items()})
    return {key: value for key, value in metadata.items() if value is not None}


def sentencepiece(**changes: Any) -> Tokenizer:
    return Tokenizer(parts_from_metadata("tiny.gguf", sentencepiece_metadata(**changes)))


def folder(path: Path, tokenizer: Any, **config: Any) -> ModelFiles:
    """A model folder around a tokenizers.Tokenizer."""
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text("{}")
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return ModelFiles("tiny", path)


def byte_level_backend() -> Any:
    """A tokenizers.Tokenizer: byte-level BPE with BOS, special tokens with flags, one added token that is none."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    alphabet = [*byte_alphabet(), *("".join(m.split(" ")) for m in PIECES)]
    vocab = {token: i for i, token in enumerate(alphabet)}
    backend = Backend(models.BPE(vocab=vocab, merges=[tuple(m.split(" ")) for m in PIECES]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIALS])
    backend.add_special_tokens(
        [
            AddedToken("<|left|>", lstrip=True, normalized=False, special=True),
            AddedToken("<|right|>", rstrip=True, normalized=False, special=True),
            AddedToken("WORD", single_word=True, normalized=False, special=True),
        ]
    )
    backend.add_tokens([AddedToken("<think>", normalized=False, special=False)])
    bos = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return backend
