"""Chat log-probabilities over code points that several tokens make up."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.client.fake import write_byte_tokenizer
from octavo.modelfiles.files import ModelFiles
from octavo.server.faces.openai.logprobs import ChatLogprobsBuilder, CompletionLogprobsBuilder
from octavo.text.tokenizer import Tokenizer
from octavo.types import TokenLogprobs


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Token ids 0 to 255 are the bytes."""
    folder: Path = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(folder)
    return Tokenizer.load(ModelFiles("bytes", folder))


def _entries(data: bytes) -> list[TokenLogprobs]:
    return [TokenLogprobs(byte, -1.0, []) for byte in data]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("text", ["plain", "é", "a🌳b🌐", "…"])
def test_joined_tokens_are_the_text_whatever_the_chunks(tokenizer: Tokenizer, text: str, size: int) -> None:
    builder, data = ChatLogprobsBuilder(tokenizer), text.encode()
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    found = [builder.build(_entries(part), final=part is parts[-1]).content for part in parts]
    entries = [entry for part in found for entry in part]
    assert "".join(entry.token for entry in entries) == text
    assert bytes(b for entry in entries for b in entry.bytes or []) == data


def test_an_unfinished_code_point_ends_as_a_replacement(tokenizer: Tokenizer) -> None:
    content = ChatLogprobsBuilder(tokenizer).build(_entries("a🌳".encode()[:3]), final=True).content
    assert [entry.token for entry in content] == ["a", "", "\ufffd"]


@pytest.mark.parametrize(
    ("ids", "shown", "offsets"),
    [
        ([257, 97, 98], "ab", [0, 0, 1]),
        ([257, 97, 98], "<|im_end|>ab", [0, 10, 11]),
        ([257, 257, 97], "<|im_end|>a", [0, 10, 10]),
        ([97, 257, 98], "a<|im_end|>b", [0, 1, 11]),
        ([32, 97, 98], "ab", [0, 0, 1]),
        ([32, 97], " a", [0, 1]),
        ([97, *"é".encode(), 98], "aéb", [0, 1, 1, 2]),
    ],
)
def test_offsets_of_an_echo_point_into_its_text(
    tokenizer: Tokenizer, ids: list[int], shown: str, offsets: list[int]
) -> None:
    """A token put before the text, or the space that SentencePiece begins with, takes no room."""
    builder = CompletionLogprobsBuilder(tokenizer, 1, True)
    entries = [None, *[TokenLogprobs(i, -1.0, []) for i in ids[1:]]]
    assert builder.echo(ids, entries, shown).text_offset == offsets
    assert builder.build(_entries(b"xy")).text_offset == [len(shown), len(shown) + 1]
