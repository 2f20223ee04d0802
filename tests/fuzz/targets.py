"""What is fuzzed: everything that takes bytes from outside. A target takes bytes and returns; only the typed errors of
octavo/errors.py may come out of what it calls, and those it catches itself.

Run by tests/fuzz/fuzz.py (atheris, for minutes) and by tests/fuzz/test_targets.py (seeds, a little damage).
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import msgspec
from gguf_bytes import File
from tiny import write_tiny_model

from octavo.client.fake import FakeClient, write_byte_tokenizer
from octavo.config import ServerConfig
from octavo.errors import ModelFileError, RequestError
from octavo.grammar.spec import grammar_of
from octavo.modelfiles.config_facts import config_facts
from octavo.modelfiles.files import ModelFiles, locate
from octavo.modelfiles.gguf import read_header as read_gguf
from octavo.modelfiles.gguf_facts import gguf_facts
from octavo.modelfiles.jsonfile import parse_object
from octavo.modelfiles.safetensors import find_tensors
from octavo.modelfiles.safetensors import read_header as read_safetensors
from octavo.processes.frames import BrokenStream, take
from octavo.text import budget
from octavo.text.channels import Channels, Content, Splitter, joined_calls
from octavo.text.template import ChatTemplate
from octavo.text.tokenizer import Tokenizer
from octavo.text.toolcalls.registry import FAMILIES
from octavo.text.toolcalls.tool import Tool
from octavo.types import Message, StructuredOutputs, ToolCallDelta
from octavo.wire.messages import MAX_MESSAGE_BYTES, ToClient, ToEngine


@cache
def _folder() -> Path:
    """In memory where that is possible; kept until the process ends."""
    holder = tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    _folder.holder = holder  # type: ignore[attr-defined]
    return Path(holder.name)


@cache
def _tokenizer() -> Tokenizer:
    folder = _folder() / "good"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    write_byte_tokenizer(folder)
    return Tokenizer.load(locate(folder, "good"))


def gguf(data: bytes) -> None:
    path = _folder() / "m.gguf"
    path.write_bytes(data)
    try:
        header = read_gguf(path)
        gguf_facts(header, path.name)
        Tokenizer.load(ModelFiles("m", path))
    except ModelFileError:
        return


def safetensors(data: bytes) -> None:
    folder = _folder() / "weights"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(data)
    try:
        header = read_safetensors(folder / "model.safetensors")
    except ModelFileError:
        return
    assert all(info.offset >= 0 and info.nbytes >= 0 for info in header.tensors.values())


def index(data: bytes) -> None:
    """model.safetensors.index.json and config.json."""
    folder = _folder() / "index"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors.index.json").write_bytes(data)
    with suppress(ModelFileError):
        find_tensors(folder)
    with suppress(ModelFileError):
        config_facts(parse_object(data, "config.json"), "config.json")


def tokenizer(data: bytes) -> None:
    folder = _folder() / "tokenizer"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_bytes(data)
    try:
        loaded = Tokenizer.load(locate(folder, "tokenizer"))
    except ModelFileError:
        return
    ids = loaded.encode("The fox says: \u00e9\U0001f98a")
    loaded.decode(ids)
    for id in ids[:8]:
        loaded.token_bytes(id)


def template(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    messages = [Message("system", "be kind"), Message("user", "hi <|im_start|>"), Message("assistant", None)]
    seconds, budget.CPU_SECONDS = budget.CPU_SECONDS, 0.2
    try:
        ChatTemplate({"default": text}, _tokenizer()).render(messages, add_generation_prompt=True)
    except (RequestError, ModelFileError):
        return
    finally:
        budget.CPU_SECONDS = seconds


class _App:
    """The whole server over an engine that is a few lines."""

    def __init__(self) -> None:
        from octavo.server.app import create_app  # the other targets need none of it
        from octavo.server.routes import ENDPOINTS, SITE

        self.loop = asyncio.new_event_loop()
        self.client = FakeClient(max_model_len=96, max_num_seqs=16)
        self.app = create_app(self.client, ServerConfig(allowed_hosts=("*",)), SITE)
        self.paths = [endpoint.path for endpoint in ENDPOINTS if endpoint.method == "POST" and "{" not in endpoint.path]
        self._lifespan = self.app.router.lifespan_context(self.app)
        self.loop.run_until_complete(self._lifespan.__aenter__())

    def post(self, path: str, body: bytes) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://fuzz") as http:
                return await http.post(path, content=body, headers={"content-type": "application/json"})

        return self.loop.run_until_complete(asyncio.wait_for(call(), 20))

    def close(self) -> None:
        self.loop.run_until_complete(self._lifespan.__aexit__(None, None, None))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


@cache
def app() -> _App:
    return _App()


def body(data: bytes) -> None:
    """The first byte chooses the endpoint, the rest is the body."""
    if not data:
        return
    path = app().paths[data[0] % len(app().paths)]
    answer = app().post(path, data[1:])
    assert answer.status_code < 500, (path, answer.status_code, answer.text[:500])
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert isinstance(error["message"], str) and error["message"]
    elif answer.headers["content-type"].startswith("text/event-stream"):
        for block in answer.text.split("\n\n"):
            for line in block.splitlines():
                assert line.startswith(("data: ", "event: ", ":")), line
                if line.startswith("data: {"):
                    json.loads(line[6:])


_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
_TOOLS = [Tool(name="get_weather", parameters=_SCHEMA), Tool(name="f", parameters={})]


def toolcalls(data: bytes) -> None:
    """The first bytes choose the family and how the text is cut; pieces must give what the whole text gives."""
    if len(data) < 4:
        return
    family = FAMILIES[data[0] % len(FAMILIES)]
    reasoning = ("<think>", "</think>") if data[1] & 1 else None
    channels = Channels(tool_parser=family.name, tools=_TOOLS, reasoning=reasoning)
    text = data[3:].decode("utf-8", "replace")
    cut = bool(data[1] & 2)
    size = 1 + data[2] % 7
    whole, pieces = Splitter(channels), Splitter(channels)
    once = whole.push(text) + whole.finish(cut)
    parts = [part for at in range(0, len(text), size) for part in pieces.push(text[at : at + size])] + pieces.finish(
        cut
    )

    def content(parts: list[Any]) -> str:
        return "".join(part.text for part in parts if isinstance(part, Content))

    def calls(parts: list[Any]) -> list[tuple[str, str]]:
        found = joined_calls([part for part in parts if isinstance(part, ToolCallDelta)])
        return [(call.name, call.arguments) for call in found]

    assert content(once) == content(parts), (text, content(once), content(parts))
    assert calls(once) == calls(parts), (text, calls(once), calls(parts))
    for _, arguments in calls(once)[: len(calls(once)) - cut]:
        json.loads(arguments)


_GRAMMAR = msgspec.json.Decoder(StructuredOutputs)


def grammar(data: bytes) -> None:
    """JSON of a StructuredOutputs, or the text of a schema, regex or grammar by its first byte."""
    if not data:
        return
    text = data[1:].decode("utf-8", "replace")
    kind = data[0] % 4
    try:
        if kind == 0:
            structured = _GRAMMAR.decode(data[1:])
        elif kind == 1:
            structured = StructuredOutputs(json=text)
        elif kind == 2:
            structured = StructuredOutputs(regex=text)
        else:
            structured = StructuredOutputs(grammar=text)
        grammar_of(structured)
    except (RequestError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        assert not (isinstance(error, RecursionError) and kind), text[:200]


_DECODERS: list[msgspec.msgpack.Decoder[Any]] = [msgspec.msgpack.Decoder(ToEngine), msgspec.msgpack.Decoder(ToClient)]


def wire(data: bytes) -> None:
    inbox = bytearray(data)
    try:
        for payload in take(inbox, MAX_MESSAGE_BYTES):
            for decoder in _DECODERS:
                with suppress(ValueError, RecursionError, msgspec.MsgspecError):
                    decoder.decode(payload)
    except BrokenStream:
        return


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (gguf, safetensors, index, tokenizer, template, body, toolcalls, grammar, wire)
}

_BODIES: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "stream": True, "n": 2, "logprobs": True},
    {"prompt": ["a", [1, 2]], "max_tokens": 3, "echo": True, "logprobs": 2, "stop": ["x"], "logit_bias": {"5": 1}},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "tools": [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
    ], "tool_choice": "required", "parallel_tool_calls": False},
    {"messages": [{"role": "user", "content": "x"}], "response_format": {
        "type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"type": "integer"}}
    }, "stream_options": {"include_usage": True}, "stream": True},
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}], "model": "m", "stream": True},
    {"input": ["a", "b"], "encoding_format": "base64", "dimensions": 8},
    {"model": "m", "max_tokens": 4, "system": "s", "messages": [{"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t", "content": "x"}
    ]}], "tools": [{"name": "f", "input_schema": {"type": "object"}}], "stream": True},
    {"prompt": "a", "structured_outputs": {"regex": "a|b"}, "seed": 3, "temperature": 0.5, "min_p": 0.1},
    {"tokens": [1, 2, 3]},
]  # fmt: skip
_CALLS = [
    '<think>why</think>\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call>',
    '{"name": "f", "parameters": {"a": [1, {"b": null}]}}',
    '[TOOL_CALLS][{"name": "f", "arguments": {}}]',
    '[get_weather(city="Oslo", days=3), f(x=[True, None, {"a": \'b\'}])]',
    "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>",
    "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
    "text before <tool_call>{broken</tool_call> and after",
    "[f(x=__import__('os').system('id'), y=(lambda: 1)())]",
]


def seeds(name: str) -> list[bytes]:
    """Good inputs to begin with."""
    if name == "gguf":
        return [File().build(), File(version=2).build(), File(alignment=64).build()]
    if name in ("safetensors", "index", "tokenizer"):
        model = write_tiny_model(_folder() / "seed")
        weights = (model / "model.safetensors").read_bytes()
        size = int.from_bytes(weights[:8], "little")
        config = (model / "config.json").read_bytes()
        shards = b'{"metadata": {"total_size": 4}, "weight_map": {"a.weight": "model-1.safetensors", "b": "../b"}}'
        small = json.dumps({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
        good = len(small).to_bytes(8, "little") + small + bytes(16)
        tokens = (model / "tokenizer.json").read_bytes()
        return {"safetensors": [weights[: 8 + size], good], "index": [config, shards], "tokenizer": [tokens]}[name]
    if name == "template":
        return [
            b"{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m.content | trim }}{% endfor %}",
            b"{% set n = namespace(x=1) %}{% for i in range(9) %}{% set n.x = n.x * 9 %}{% endfor %}{{ n.x | tojson }}",
            b"{% macro f(x) %}{{ x ~ x }}{% endmacro %}{{ f(messages) }}{{ raise_exception('no') if tools }}",
            b"{{ strftime_now('%d') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
        ]
    if name == "body":
        bodies = [json.dumps(one).encode() for one in _BODIES]
        return [bytes([n]) + one for one in bodies for n in range(len(app().paths))]
    if name == "toolcalls":
        return [bytes([n, n, n]) + text.encode() for n in range(len(FAMILIES)) for text in _CALLS]
    if name == "grammar":
        schema = (
            b'{"type":"object","properties":{"a":{"$ref":"#/$defs/b"}},"$defs":{"b":{"enum":[1,"x"]}},"required":["a"]}'
        )
        return [
            b'\0{"choice":["a","b"]}',
            b"\1" + schema,
            b'\1{"type":"array","items":{"anyOf":[{"type":"string","pattern":"^a+$"},{"format":"date"}]},"maxItems":3}',
            rb"\2"[:0] + b"\2" + rb"(\d{4}-\w+)|[^a-f\s]?x{2,}",
            b'\3root ::= "a" ([b-d] | other)*\nother ::= "x"{2,3}\n',
            b'\3start: "a" x+\nx: /[b-c]/ | %json {"type":"null"}\n',
        ]
    assert name == "wire"
    return [msgspec.msgpack.encode(["hello", 3]), b"\x03\0\0\0\x92\xa3abort\x90", bytes(8)]
