"""How every kind of byte-level BPE cuts text: fixed cases, and nothing lost on any text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.text.parts import byte_level_piece
from octavo.text.pretokenizers import KINDS, Kind, build

BUILT = {kind: build(kind) for kind in dict.fromkeys(KINDS.values())}


def words(kind: Kind, text: str) -> list[str]:
    return [byte_level_piece(word).decode() for word, _ in BUILT[kind].pre_tokenize_str(text)]


# One text with contractions, digits, blanks and symbols; `|` stands between the words.
SENTENCE = "I'M don't  x1234.56\n\n a/b"
SENTENCE_WORDS = {
    "default": "I|'|M| don|'|t| | x|123|4|.|56|\n\n| a|/|b",
    "gpt-2": "I|'|M| don|'t| | x|1234|.|56|\n\n| a|/|b",
    "olmo": "I|'|M| don|'t| | x|1234|.|56|\n\n| a|/|b",
    "mpt": "I|'|M| don|'t| | x|1234|.|56|\n\n| a|/|b",
    "smollm": "I|'|M| don|'t| | x|1|2|3|4|.|5|6|\n\n| a|/|b",
    "starcoder": "I|'|M| don|'t| | x|1|2|3|4|.|5|6|\n\n| a|/|b",
    "refact": "I|'|M| don|'t| | x|1|2|3|4|.|5|6|\n\n| a|/|b",
    "command-r": "I|'|M| don|'t| | x|1|2|3|4|.|5|6|\n\n| a|/|b",
    "falcon": "I|'|M| don|'|t| | x|123|4|.|56|\n\n| a|/|b",
    "llama-bpe": "I|'M| don|'t| | x|123|4|.|56|\n\n| a|/b",
    "dbrx": "I|'M| don|'t| | x|123|4|.|56|\n\n| a|/b",
    "chatglm-bpe": "I|'M| don|'t| | x|123|4|.|56|\n\n| a|/b",
    "qwen2": "I|'M| don|'t| | x|1|2|3|4|.|5|6|\n\n| a|/b",
    "deepseek-r1-qwen": "I|'M| don|'t| | x|1|2|3|4|.|5|6|\n\n| a|/b",
    "stablelm2": "I|'M| don|'t| | x|1|2|3|4|.|5|6|\n\n| a|/b",
    "deepseek-llm": "I|'|M| don|'|t| | x|1234|.|56|\n|\n| a|/|b",
    "deepseek-coder": "I|'|M| don|'|t| | x|1|2|3|4|.|5|6|\n|\n| a|/|b",
    "deepseek-v3": "I|'M| don|'t| | x|123|4|.|56|\n\n| a|/b",
    "bloom": "I'M| don't| | x1234|.|56|\n\n| a/b",
    "viking": "I'M| don't| | x|1|2|3|4|.|5|6|\n\n| a/b",
    "tekken": "I|'M| don|'t| | x|1|2|3|4|.|5|6|\n\n| a|/b",
    "gpt-4o": "I'M| don't| | x|123|4|.|56|\n\n| a|/b",
}


@pytest.mark.parametrize("name", SENTENCE_WORDS)
def test_a_sentence(name: str) -> None:
    assert words(KINDS[name], SENTENCE) == SENTENCE_WORDS[name].split("|")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("llama-bpe", "if(x){\r\n\treturn;\n}", "if|(x|){\r\n|\treturn|;\n|}"),
        ("qwen2", "a   b\n  c ", "a|  | b|\n| | c| "),
        ("gpt-2", "a   b\n  c ", "a|  | b|\n | c| "),
        ("smollm", "x²½ ٣٤", "x|²|½| |٣|٤"),
        ("falcon", "1234567 `x`", "123|456|7| |`|x|`"),
        ("deepseek-llm", "Hello 世界 мир أب", "Hello| |世界| мир| أب"),
        ("deepseek-llm", "「引用」\uff1a好", "「引用」|\uff1a|好"),
        # Its class of symbols, `:-~`, spans the ASCII letters: kept, since the merges were learned so.
        ("deepseek-llm", "café \u03b1\u03ce\u01c5", "caf|é| \u03b1\u03ce\u01c5"),
        ("deepseek-coder", "x = y.z;", "x| =| y|.|z|;"),
        ("deepseek-v3", "#include <a> 東京12345", "#include| <|a|>| |東京|123|45"),
        ("bloom", "हिन्दी।next", "हिन्दी|।|next"),
        ("tekken", "CamelCase HTTPServer", "Camel|Case| HTTPServer"),
        ("gpt-4o", "CamelCase it's/\n", "Camel|Case| it's|/\n"),
        ("qwen35", "हिन्दी abc", "हिन्दी| abc"),
        ("qwen2", "हिन्दी", "ह|िन|्द|ी"),
        ("bailingmoe", "a\n\nb", "a|\n\n|b"),
        ("seed-coder", "x;\n", "x|;|\n"),
    ],
)
def test_cases(name: str, text: str, expected: str) -> None:
    assert words(KINDS[name], text) == expected.split("|")


@settings(max_examples=50)
@given(st.text())
def test_no_text_is_lost(text: str) -> None:
    for kind in BUILT:
        assert "".join(words(kind, text)) == text


def test_words_that_are_tokens() -> None:
    assert KINDS["llama-bpe"].ignore_merges
    assert KINDS["tekken"].ignore_merges
    assert not KINDS["qwen2"].ignore_merges
