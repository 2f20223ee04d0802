"""Tokenizers from GGUF metadata and tokenizer.json: ids, special tokens as text, limits, refusals."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_text import (
    SPECIALS,
    byte_level,
    byte_level_backend,
    byte_level_metadata,
    folder,
    sentencepiece,
    sentencepiece_metadata,
)

from octavo.errors import ContextLengthExceeded, ModelFileError, RequestError
from octavo.modelfiles.files import ModelFiles
from octavo.text.gguf_tokenizer import parts_from_metadata
from octavo.text.tokenizer import WHOLE_CHARS, Tokenizer

BYTE_LEVEL = byte_level()
PIECES = sentencepiece()
TEXT = st.text() | st.lists(st.sampled_from([*SPECIALS, "<think>", " ", "hello", "\n", "😀", "é"])).map("".join)


@given(TEXT)
@example("hello world 😀\n\n 12 <|im_end|>")
def test_byte_level_round_trip(text: str) -> None:
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode(text), skip_special_tokens=False) == text
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode(text, parse_special=True), skip_special_tokens=False) == text


@given(TEXT)
@example("hello  world é 日本")
def test_sentencepiece_round_trip(text: str) -> None:
    assert PIECES.decode(PIECES.encode(text), skip_special_tokens=True) == text


@given(TEXT)
def test_special_tokens_in_text_are_text(text: str) -> None:
    for tokenizer in (BYTE_LEVEL, PIECES):
        assert not tokenizer.special_ids & set(tokenizer.encode(text, add_special_tokens=False))


def test_no_merge_and_no_word_spells_a_control_token() -> None:
    plain = byte_level_metadata()["tokenizer.ggml.tokens"]
    merges = byte_level_metadata()["tokenizer.ggml.merges"]
    types = [3] * 5 + [4] + [1] * (len(plain) - 7) + [5]
    types[plain.index("hello")] = 3
    for pre in ("gpt-2", "llama-bpe"):
        tokenizer = byte_level(token_type=types, pre=pre, merges=[*merges, "hello Ġ"], add_bos_token=False)
        assert [tokenizer.token_text(i) for i in tokenizer.encode("hello")] == ["hell", "o"]
        assert tokenizer.encode("hello", parse_special=True) == [plain.index("hello")]
    tokens = [*sentencepiece_metadata()["tokenizer.ggml.tokens"], "<", ">", "<s", "/", "</", "</s"]
    types = [*sentencepiece_metadata()["tokenizer.ggml.token_type"], *[1] * 6]
    pieces = sentencepiece(tokens=tokens, token_type=types, scores=[0.0] * len(tokens))
    assert not pieces.special_ids & set(pieces.encode("</s><s>", add_special_tokens=False))
    assert pieces.encode("</s><s>", parse_special=True) == [1, 2, 1]


def _sentencepiece_backend(decoder: Any) -> Any:
    backend = parts_from_metadata("tiny.gguf", sentencepiece_metadata()).backend
    backend.decoder = decoder
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


@pytest.mark.parametrize("strips", [True, False])
@pytest.mark.parametrize("text", ["hello world", " a", "日本 é", "the</s> in"])
def test_a_sentencepiece_folder(tmp_path: Path, strips: bool, text: str) -> None:
    from tokenizers import decoders

    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend = _sentencepiece_backend(decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strips else [])]))
    tokenizer = Tokenizer.load(folder(tmp_path, backend, bos_token="<s>", eos_token="</s>"))
    ids = tokenizer.encode(text, parse_special=True)
    assert ids == backend.encode(text).ids
    for skip in (True, False):
        assert tokenizer.decode(ids, skip_special_tokens=skip) == backend.decode(ids, skip_special_tokens=skip)
    assert not tokenizer.special_ids & set(tokenizer.encode("</s>"))


def test_a_metaspace_folder(tmp_path: Path) -> None:
    from tokenizers import decoders

    backend = _sentencepiece_backend(decoders.Metaspace())
    tokenizer = Tokenizer.load(folder(tmp_path, backend))
    ids = tokenizer.encode("hello world")
    assert tokenizer.decode(ids) == backend.decode(ids) == "hello world"
    assert tokenizer.bos_id is None


def test_special_tokens_where_they_are_meant() -> None:
    ids = BYTE_LEVEL.encode("<|im_start|>hello<|im_end|>", parse_special=True)
    assert [BYTE_LEVEL.token_text(i) for i in ids] == ["<|im_start|>", "hello", "<|im_end|>"]
    assert BYTE_LEVEL.decode(ids) == "hello"
    assert BYTE_LEVEL.encode("<think>") == [5]  # user-defined, not special: whole in any text
    assert BYTE_LEVEL.decode([5]) == "<think>"


def test_end_of_turn_tokens_are_all_stops() -> None:
    assert BYTE_LEVEL.eos_ids == {1, 3, 4}
    assert byte_level(eot_token_id=5, eom_token_id=2).eos_ids == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_end_of_turn_whatever_its_type_and_the_eos_id_say(kind: int) -> None:
    """llama.cpp makes a control token of it, so that a user's text cannot spell it either."""
    names = [
        "[EOT]",
        "[EOS]",
        "_<EOT>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|calls|>",
        "<|fim_pad|>",
        "<|file_sep|>",
    ]
    metadata = byte_level_metadata(eos_token_id=None)
    metadata["tokenizer.ggml.tokens"][-1:] = names
    types = metadata["tokenizer.ggml.token_type"]
    types[2:5] = [kind] * 3
    types[-1:] = [kind] * len(names)
    tokenizer = Tokenizer(parts_from_metadata("tiny.gguf", metadata))
    ends = [tokenizer.special_id(name) for name in ("</s>", "<|im_end|>", "<|eot_id|>", *names)]
    assert tokenizer.eos_ids == set(ends)
    assert not tokenizer.eos_ids & set(tokenizer.encode("x<|im_end|>[EOT]<|fim_pad|>"))
    assert tokenizer.decode([3, 4]) == ""


def test_which_names_do_not_end_a_turn() -> None:
    """As llama.cpp has it: harmony's and its kin's <|end|>, and </s> beside <|tool_response>; a file's own fill-in
    tokens take the place of those known by name."""

    def ends(*names: str, **changes: Any) -> set[str]:
        metadata = byte_level_metadata(eos_token_id=None, **changes)
        tokens = metadata["tokenizer.ggml.tokens"]
        tokens[1:5] = [f"<x{i}>" for i in range(4)]
        tokens[-1:] = names
        metadata["tokenizer.ggml.token_type"][-1:] = [3] * len(names)
        return {tokens[i] for i in parts_from_metadata("tiny.gguf", metadata).eos_ids}

    assert ends("<|end|>", "<|call|>") == {"<|end|>", "<|call|>"}
    assert ends("<|end|>", "<|call|>", "<|return|>") == {"<|call|>", "<|return|>"}
    assert ends("<|end|>", "<|calls|>", "<|flush|>") == {"<|calls|>", "<|flush|>"}
    assert ends("</s>", "<|tool_response>") == {"<|tool_response>"}
    assert ends("<PAD>", fim_pad_token_id=0) == {"<s>"}


def test_ids_that_a_file_leaves_out_or_that_do_not_exist() -> None:
    """llama.cpp's defaults: those of SentencePiece models; those of gpt2 are Falcon's, and a comma elsewhere."""
    for value in (None, 10**6, -1, 0xFFFFFFFF):
        left_out = sentencepiece(bos_token_id=value, eos_token_id=value, unknown_token_id=value)
        assert (left_out.bos_id, left_out.eos_ids) == (1, {2})
        assert left_out.encode("hello 日") == PIECES.encode("hello 日")
        assert byte_level(eos_token_id=value, bos_token_id=value).bos_id is None
    metadata = byte_level_metadata(eos_token_id=None, bos_token_id=None)
    metadata["tokenizer.ggml.token_type"][11] = 3
    falcon = parts_from_metadata("tiny.gguf", metadata)
    assert falcon.bos_id == 11 and 11 in falcon.eos_ids


@pytest.mark.parametrize("text", ["e\u0301", "\u1112\u1161\u11ab", "Vie\u0323\u0302t", "\u212b", "plain"])
def test_qwens_texts_are_composed_as_in_its_tokenizer_json(text: str) -> None:
    import unicodedata

    composed = unicodedata.normalize("NFC", text)
    assert byte_level(pre="qwen2").encode(text) == byte_level(pre="qwen2").encode(composed)
    assert byte_level(pre="gpt-2").decode(byte_level(pre="gpt-2").encode(text)) == text


def test_bos_and_eos_around_a_prompt() -> None:
    assert BYTE_LEVEL.encode("") == []
    assert byte_level(add_bos_token=True, add_eos_token=True).encode("hello")[::2] == [0, 1]
    assert byte_level(pre="llama-bpe").encode("") == [0]  # this kind's default
    assert byte_level(pre="llama-bpe", add_bos_token=False).encode("") == []
    assert PIECES.encode("") == [1]
    assert PIECES.encode("hello", add_special_tokens=False) == PIECES.encode("hello")[1:]


def test_sentencepiece_merges_by_score() -> None:
    assert [PIECES.token_text(i) for i in PIECES.encode("hello world")] == ["<s>", " hello", " world"]
    # Neither in the vocabulary nor a letter: byte by byte
    assert [PIECES.token_bytes(i) for i in PIECES.encode("日", add_special_tokens=False)] == [
        b" ",
        b"\xe6",
        b"\x97",
        b"\xa5",
    ]
    without = sentencepiece(add_space_prefix=False)
    assert without.token_text(without.encode("hello a", add_special_tokens=False)[0]) != " hello"
    assert without.decode(without.encode(" hello")) == " hello"


def test_continuation_keeps_the_space() -> None:
    ids = PIECES.encode("hello world", add_special_tokens=False)
    assert PIECES.decode(ids[1:]) == "world"
    assert PIECES.decode(ids[1:], continuation=True) == " world"


def test_ids_without_a_token_are_empty() -> None:
    size = BYTE_LEVEL.vocab_size
    assert BYTE_LEVEL.token_bytes(size) == b"" == BYTE_LEVEL.token_bytes(size + 10**6)
    assert BYTE_LEVEL.token_text(size - 1) == "[PAD0]"
    assert BYTE_LEVEL.decode([size, 5]) == "<think>"


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(RequestError, match=r"U\+D83D at character 2"):
        BYTE_LEVEL.encode("ab\ud83d")


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, PIECES], ids=["bytes", "pieces"])
def test_long_texts_in_chunks_are_the_same_tokens(tokenizer: Tokenizer) -> None:
    text = "hello world the sing 12 é\n" * (WHOLE_CHARS // 20)
    assert len(text) > WHOLE_CHARS
    ids = tokenizer.encode(text)
    whole = tokenizer._backend.encode(text, add_special_tokens=False).ids
    assert [i for i in ids if i != 1] == whole
    specials = "<|im_end|>" * (WHOLE_CHARS // 10 + 7)
    assert tokenizer.decode(tokenizer.encode(specials), skip_special_tokens=False).removeprefix("<s>") in (
        specials,
        " " + specials,
    )
    assert set(BYTE_LEVEL.encode(specials, parse_special=True)) == {3}


@pytest.mark.parametrize("text", ["a", " ", "1", "\n ", "😀", "hello ", "<|im_end|>", "̈"])
def test_a_16_mib_prompt_is_refused_in_time(text: str) -> None:
    start = time.thread_time()
    with pytest.raises(ContextLengthExceeded, match="at most 8192"):
        BYTE_LEVEL.encode(text * ((16 << 20) // len(text.encode())), parse_special=True, max_tokens=8192)
    assert time.thread_time() - start < 5


def test_a_context_limit_counts_bos() -> None:
    assert len(PIECES.encode("hello", max_tokens=2)) == 2
    with pytest.raises(ContextLengthExceeded):
        PIECES.encode("hello", max_tokens=1)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (byte_level_metadata(pre="nonsense"), "'nonsense', an unknown pre-tokenizer; known: .*llama-bpe"),
        (byte_level_metadata(model="bert"), "'bert', which is not supported; known: gpt2, llama"),
        (byte_level_metadata(tokens=None), "tokens is missing"),
        (byte_level_metadata(tokens=[1, 2]), "tokens is not an array of str"),
        (byte_level_metadata(merges=None), "merges is missing"),
        (byte_level_metadata(merges=["x zzz"]), "merges do not fit"),
        (byte_level_metadata(merges=["nospace"]), "merges do not fit"),
        (byte_level_metadata(token_type=[1]), "token_type has 1 entries"),
        (byte_level_metadata(add_eos_token=True, eos_token_id=10**6), "eos_token_id is missing, and each prompt needs"),
        (byte_level_metadata(pre="llama-bpe", bos_token_id=None), "bos_token_id is missing, and each prompt needs"),
        (byte_level_metadata(add_bos_token="yes"), "add_bos_token is 'yes'"),
        (sentencepiece_metadata(scores=None), "scores is missing"),
    ],
)
def test_wrong_metadata_is_refused_by_name(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        parts_from_metadata("tiny.gguf", metadata)


def test_a_folder(tmp_path: Path) -> None:
    files = folder(tmp_path, byte_level_backend(), bos_token="<s>", eos_token={"content": "</s>"}, pad_token="<new>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 259]}))
    tokenizer = Tokenizer.load(files)
    assert tokenizer.special_names == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<new>"}
    bos, eos = tokenizer.bos_id, tokenizer.encode("</s>", add_special_tokens=False, parse_special=True)[0]
    assert tokenizer.encode("hello")[0] == bos
    assert tokenizer.eos_ids == {eos, 258, 259}
    assert tokenizer.token_text(tokenizer.vocab_size - 1) == "<new>"
    assert tokenizer.vocab_size - 1 in tokenizer.special_ids


@settings(max_examples=300)
@given(st.lists(st.sampled_from([*SPECIALS, "<|left|>", "<|right|>", "WORD", "<think>", " ", "\n", "x", "_", "hello"])))
def test_special_tokens_are_found_as_the_library_finds_them(parts: list[str]) -> None:
    text = "".join(parts)
    assert FOLDER.encode(text, parse_special=True) == REFERENCE.encode(text).ids
    REFERENCE_AS_TEXT.encode_special_tokens = True
    assert FOLDER.encode(text) == REFERENCE_AS_TEXT.encode(text).ids


REFERENCE, REFERENCE_AS_TEXT = byte_level_backend(), byte_level_backend()


def _load_folder() -> Tokenizer:
    import tempfile

    with tempfile.TemporaryDirectory() as path:
        return Tokenizer.load(folder(Path(path), byte_level_backend()))


FOLDER = _load_folder()


def test_a_folder_without_or_with_a_broken_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no tokenizer\.json"):
        Tokenizer.load(ModelFiles("x", tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelFileError, match="not a readable tokenizer"):
        Tokenizer.load(ModelFiles("x", tmp_path))
    backend = byte_level_backend()
    from tokenizers import decoders

    backend.decoder = decoders.CTC()
    with pytest.raises(ModelFileError, match="CTC"):
        Tokenizer.load(folder(tmp_path, backend))
    with pytest.raises(ModelFileError, match="eos_token_id"):
        (tmp_path / "generation_config.json").write_text('{"eos_token_id": "x"}')
        Tokenizer.load(folder(tmp_path, byte_level_backend()))


def test_the_demo_model(demo_gguf: Path) -> None:
    tokenizer = Tokenizer.load(ModelFiles("demo", demo_gguf))
    assert tokenizer.vocab_size == 49152
    assert tokenizer.eos_ids == {0, 2, 4}  # and <reponame>, as in llama.cpp
    ids = tokenizer.encode("Hello 😀 2024 <|im_end|>")
    assert 2 not in ids
    assert tokenizer.decode(ids) == "Hello 😀 2024 <|im_end|>"
    for token in SPECIALS[2:4]:
        assert tokenizer.encode(token, parse_special=True) == [SPECIALS.index(token) - 1]
