"""Bodies of POST /tokenize and /detokenize, and of GET /tokenizer_info."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from octavo.server.faces.openai.protocol.chat import MAX_TOOLS, ChatMessage, ChatTool


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /tokenize: `prompt` or `messages`, as vLLM has it; or `content`, as llama.cpp has it."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    tools: Annotated[list[ChatTool], Meta(max_length=MAX_TOOLS, description="With messages.")] | None = None
    add_special_tokens: Annotated[bool, Meta(description="Default: for a prompt, not for messages.")] | None = None
    parse_special: Annotated[bool, Meta(description="Strings of special tokens in a text are those tokens.")] = True
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: Annotated[bool, Meta(description="The tokens as the vocabulary spells them.")] = False
    content: Annotated[str, Meta(description="The text, without BOS unless add_special.")] | None = None
    add_special: bool = False
    with_pieces: Annotated[bool, Meta(description="With content: each token with its text.")] = False

    def check(self) -> None:
        pass


class TokenPiece(msgspec.Struct, kw_only=True):
    id: int
    piece: Annotated[str | list[int], Meta(description="Bytes where they are no whole characters.")]


class TokenizeResponse(msgspec.Struct, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int | TokenPiece]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /detokenize"""

    model: str | None = None
    tokens: list[int]

    def check(self) -> None:
        pass


class DetokenizeResponse(msgspec.Struct, kw_only=True):
    prompt: str
    content: Annotated[str, Meta(description="The same, as llama.cpp calls it.")]


class TokenizerInfo(msgspec.Struct, kw_only=True):
    """What a client needs that tokenizes by this server: special tokens as texts, the model's chat template."""

    tokenizer_class: str = "octavo"
    vocab_size: int
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    add_bos_token: Annotated[bool, Meta(description="A text prompt begins with BOS.")]
    chat_template: str | None
