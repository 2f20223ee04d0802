"""Chat messages to the prompt of a model, by the Jinja template that comes with it. For server and offline engine.

Finds the template (GGUF metadata, chat_template.jinja, tokenizer_config.json), renders it as Transformers would, byte
for byte, and tokenizes the result so that control tokens come only from the template: the same strings inside message
contents, names or tools stay text. Rendering takes CPU time: call it off the event loop. Instances are thread-safe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from octavo.errors import ModelFileError, Place, RequestError, Unsupported
from octavo.modelfiles.files import ModelFiles
from octavo.modelfiles.gguf import read_header
from octavo.modelfiles.jsonfile import read_object
from octavo.text.tokenizer import Segment, Tokenizer, check_unicode
from octavo.types import Message

MAX_TEMPLATE_BYTES = 1 << 20
_RESERVED = frozenset(
    {"messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize"}
)
_PROBE: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "find_probe",
        "description": "Finds.",
        "parameters": {"type": "object", "properties": {"key": {"type": "string", "description": "What."}}},
    },
}
"""A tool to try a template with."""
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
# Rare symbols and ideographs, to mark special tokens with: printable, so that repr() and JSON leave them as they are.
_MARKS = (range(0x1D800, 0x1DA00), range(0x20000, 0x2A6D7))


class ChatTemplate:
    """The chat templates of one model by name; a model without any refuses chat requests, not completions."""

    def __init__(self, templates: dict[str, str], tokenizer: Tokenizer) -> None:
        self._sources = templates
        self._tokenizer = tokenizer
        self._compiled: dict[str, Any] = {}
        specials = sorted(tokenizer.special_texts, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, specials)) or "(?!)")

    @classmethod
    def load(cls, files: ModelFiles, tokenizer: Tokenizer) -> ChatTemplate:
        """Read the templates beside the weights. Raises ModelFileError when one is there but not readable."""
        return cls(_gguf_templates(files.path) if files.is_gguf else _folder_templates(files.path), tokenizer)

    @property
    def source(self) -> str | None:
        """The text of the default template, where there is one."""
        return self._sources.get("default")

    @cached_property
    def sources(self) -> str:
        """All of the model's templates, to look for what they mention."""
        return "\n".join(self._sources.values())

    @cached_property
    def knows_tools(self) -> bool:
        """Whether the tools of a request appear in its prompt: tried."""
        if not self._sources:
            return False
        try:
            text = self.render([Message(role="user", content="a")], add_generation_prompt=True, tools=[_PROBE])
        except RequestError:
            return "tools" in self.sources
        return _PROBE["function"]["name"] in text

    @cached_property
    def takes_arguments(self) -> tuple[bool, bool]:
        """Whether a call's arguments may be given to the template as a mapping, and whether as text: tried."""
        return self._renders_calls({"key": "value"}), self._renders_calls('{"key": "value"}')

    @cached_property
    def takes_several_calls(self) -> bool:
        """Whether one message may hold more calls than one: tried."""
        arguments: Any = {"key": "value"} if self.takes_arguments[0] else '{"key": "value"}'
        return self._renders_calls(arguments, count=2) or not self._renders_calls(arguments)

    @cached_property
    def takes_system(self) -> bool:
        """Whether a system message is shown, not refused or passed over: tried."""
        messages = [Message(role="system", content="some words"), Message(role="user", content="a")]
        try:
            return "some words" in self.render(messages, add_generation_prompt=True)
        except RequestError:
            return False

    @cached_property
    def takes_late_system(self) -> bool:
        """The same for a system message that comes later than first."""
        words = [("user", "a"), ("system", "some words"), ("assistant", "b"), ("user", "c")]
        try:
            text = self.render([Message(role=role, content=said) for role, said in words], add_generation_prompt=True)
        except RequestError:
            return False
        return "some words" in text

    def _renders_calls(self, arguments: Any, count: int = 1) -> bool:
        ids = [f"abcdefgh{i}" for i in range(count)]
        function = {"name": _PROBE["function"]["name"], "arguments": arguments}
        calls = [{"id": call_id, "type": "function", "function": function} for call_id in ids]
        messages = [
            Message(role="user", content="a"),
            Message(role="assistant", content="", tool_calls=calls),
            *(Message(role="tool", content="b", tool_call_id=call_id) for call_id in ids),
        ]
        try:
            text = self.render(messages, add_generation_prompt=True, tools=[_PROBE])
        except RequestError:
            return False
        return "{'key'" not in text  # as Python would print it

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt as text. `kwargs` are further variables of the template (`chat_template_kwargs` of a request).

        Raises RequestError: no template, a refusal by the template itself, or more time or text than it may use.
        """
        inputs = self._inputs(messages, tools, kwargs, add_generation_prompt, continue_final_message)
        return self._render(inputs, continue_final_message, "")

    def encode(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        max_tokens: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """The prompt as token ids: those of `render()`'s text, except that special-token strings which the request
        brought are text. `max_tokens` as in Tokenizer.encode."""
        inputs = self._inputs(messages, tools, kwargs, add_generation_prompt, continue_final_message)
        texts = list(_strings(inputs))
        if not any(self._special.search(text) for text in texts):
            text = self._render(inputs, continue_final_message, "")
            return self._tokenizer.encode_segments(self._tokenizer.split_special(text), max_tokens=max_tokens)
        marks = _unused_characters([*texts, *self._sources.values()])
        marked = self._mark(inputs, marks)
        text = self._render(marked, continue_final_message, marks)
        return self._tokenizer.encode_segments(self._unmarked(text, marks), max_tokens=max_tokens)

    def _inputs(
        self,
        messages: Sequence[Message],
        tools: list[dict[str, Any]] | None,
        kwargs: dict[str, Any],
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> dict[str, Any]:
        """The template's variables that come from the request, as plain data."""
        if not messages:
            raise RequestError("messages must not be empty", param="messages")
        if continue_final_message and add_generation_prompt:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
            )
        if reserved := _RESERVED & kwargs.keys():
            raise RequestError(f"{min(reserved)!r} cannot be set for the chat template", param="chat_template_kwargs")
        keeps_parts = self._template(tools)[1]
        chat = [_plain_message(message, i, keeps_parts) for i, message in enumerate(messages)]
        inputs = {"documents": None, **kwargs, "messages": chat, "tools": tools}
        inputs["add_generation_prompt"] = add_generation_prompt
        for text in _strings(inputs):
            check_unicode(text)
        return inputs

    def _template(self, tools: list[dict[str, Any]] | None) -> tuple[Any, bool]:
        """The compiled template for this request, and whether it takes contents that are lists of parts."""
        if not self._sources:
            raise RequestError("this model has no chat template; use completions instead", param="messages")
        name = "tool_use" if tools is not None and "tool_use" in self._sources else "default"
        if name not in self._sources:
            raise RequestError(
                f"this model has no default chat template, only {sorted(self._sources)}", param="messages"
            )
        if name not in self._compiled:
            import jinja2

            from octavo.text.sandbox import ChatEnvironment

            environment = ChatEnvironment()
            try:
                template = environment.compile_chat(self._sources[name])
                keeps_parts = _loops_over_content(environment.parse(self._sources[name]))
            except (jinja2.TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
                raise RequestError(f"this model's chat template cannot be read: {error}", param="messages") from None
            self._compiled[name] = template, keeps_parts
        found: tuple[Any, bool] = self._compiled[name]
        return found

    def _render(self, inputs: dict[str, Any], continue_final_message: bool, marks: str) -> str:
        import jinja2

        from octavo.text import sandbox

        template, _ = self._template(inputs["tools"])
        if continue_final_message:
            inputs, final = _tag_final_message(inputs)
        budget = sandbox.Budget(sandbox.MAX_CHARS + 4 * sum(map(len, _strings(inputs))), marks)
        try:
            text = sandbox.render(template, budget, {**self._tokenizer.special_names, **inputs})
        except jinja2.TemplateError as error:
            raise RequestError(f"the chat template refused the messages: {error.message}", param="messages") from None
        except Exception as error:
            # Whatever a template does wrong is the request's or the model's fault, never the server's.
            raise RequestError(f"the chat template failed: {error}", param="messages") from None
        return _cut_at_tag(text, final) if continue_final_message else text

    def _mark(self, value: Any, marks: str) -> Any:
        """The value with the two marks around every special-token string in it."""
        if isinstance(value, str):
            return self._special.sub(lambda match: marks[0] + match.group() + marks[1], value)
        if isinstance(value, dict):
            return {self._mark(key, marks): self._mark(item, marks) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._mark(item, marks) for item in value]
        return value

    def _unmarked(self, text: str, marks: str) -> Iterator[Segment]:
        """Rendered text in segments, without the marks; a special token that touches its mark is text."""

        def is_text(start: int, end: int) -> bool:
            return text[start - 1 : start] == marks[0] or text[end : end + 1] == marks[1]

        gone = dict.fromkeys(map(ord, marks))
        for segment in self._tokenizer.split_special(text, is_text):
            yield segment.translate(gone) if isinstance(segment, str) else segment


def _gguf_templates(path: Path) -> dict[str, str]:
    """`tokenizer.chat_template`, and the named ones `tokenizer.chat_template.NAME`."""
    prefix = "tokenizer.chat_template"
    found: dict[str, str] = {}
    for key, value in read_header(path).metadata.items():
        if key == prefix or key.startswith(prefix + "."):
            found[key[len(prefix) + 1 :] or "default"] = _checked(path.name, key, value)
    return found


def _folder_templates(folder: Path) -> dict[str, str]:
    """chat_template.jinja wins over tokenizer_config.json, whose entry is one template or a list of named ones."""
    found: dict[str, str] = {}
    if (folder / "tokenizer_config.json").is_file():
        value = read_object(folder / "tokenizer_config.json").get("chat_template")
        entries = (
            value if isinstance(value, list) else [] if value is None else [{"name": "default", "template": value}]
        )
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                raise ModelFileError("tokenizer_config.json", "chat_template is not a template or a list of named ones")
            found[entry["name"]] = _checked("tokenizer_config.json", "chat_template", entry.get("template"))
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = _read_template(path)
    if (folder / "chat_template.jinja").is_file():
        found["default"] = _read_template(folder / "chat_template.jinja")
    return found


def _read_template(path: Path) -> str:
    try:
        return _checked(path.name, "template", path.read_bytes().decode())
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(path.name, f"not readable: {error}") from None


def _checked(file: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEMPLATE_BYTES:
        raise ModelFileError(file, f"{key} is not a template of at most {MAX_TEMPLATE_BYTES} characters")
    return value


def _plain_message(message: Message, index: int, keeps_parts: bool) -> dict[str, Any]:
    """One message as the template sees it: plain data, absent fields left out."""
    plain: dict[str, Any] = msgspec.to_builtins(message)
    plain = {key: value for key, value in plain.items() if value is not None}
    if isinstance(content := plain.get("content"), list):
        texts = [_part_text(part, Place("messages", index, "content", i)) for i, part in enumerate(content)]
        plain["content"] = [{"type": "text", "text": text} for text in texts] if keeps_parts else "\n".join(texts)
    if "reasoning_content" in plain:
        # gpt-oss templates read the older name; the order of the keys is Transformers', since templates may print them.
        plain = {"thinking": plain["reasoning_content"], **plain}
    return plain


def _part_text(part: Any, where: Place) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "input_text", "output_text"):
        if isinstance(text := part.get("text"), str):
            return text
        raise RequestError("a text part needs a string `text`", param=where)
    if isinstance(kind, str):
        raise Unsupported(f"content parts of type {kind[:40]!r} are not supported by this model", param=where)
    raise RequestError("a content part needs a `type`", param=where)


def _loops_over_content(tree: Any) -> bool:
    """Whether a template walks through `message.content` as a list of parts (as vLLM decides it)."""
    from jinja2 import nodes

    def is_content(node: Any, names: set[str]) -> bool:
        while isinstance(node, (nodes.Filter, nodes.Test)):
            node = node.node
        if isinstance(node, nodes.Getitem):
            return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
        if isinstance(node, nodes.Getattr):
            return bool(node.attr == "content")
        return isinstance(node, nodes.Name) and node.name in names

    names: set[str] = set()
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and is_content(assign.node, names):
            names.add(assign.target.name)
    return any(is_content(loop.iter, names) for loop in tree.find_all(nodes.For))


def _tag_final_message(inputs: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Put the tag after the final message's text, so that what the template writes behind it can be cut off."""
    *before, last = inputs["messages"]
    content = last.get("content")
    if isinstance(content, list) and content:
        final = content[-1]["text"]
        tagged: Any = [*content[:-1], {**content[-1], "text": final + _CONTINUE_TAG}]
    elif isinstance(content, str):
        final, tagged = content, content + _CONTINUE_TAG
    else:
        raise RequestError(
            "continue_final_message needs text in the final message to continue", param="continue_final_message"
        )
    return {**inputs, "messages": [*before, {**last, "content": tagged}]}, final


def _cut_at_tag(text: str, final: str) -> str:
    """The rendered text up to the end of the final message, with its blanks as the template keeps them."""
    position = text.rfind(_CONTINUE_TAG.strip())
    if position < 0 or final.strip() not in text:
        raise RequestError(
            "continue_final_message: the chat template does not show the final message as it stands",
            param="continue_final_message",
        )
    if text.startswith(_CONTINUE_TAG, position):
        return text[:position]
    return text[:position].rstrip()


def _strings(value: Any) -> Iterator[str]:
    """Every string in plain data, keys too."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            stack += item.keys()
            stack += item.values()
        elif isinstance(item, (list, tuple)):
            stack += item


def _unused_characters(texts: Iterable[str]) -> str:
    """Two rare characters that none of the texts holds: nobody can forge the marks."""
    used = set().union(*map(set, texts))
    found = list(islice((chr(code) for codes in _MARKS for code in codes if chr(code) not in used), 2))
    if len(found) < 2:
        raise RequestError("the messages hold special tokens and every rare character", param="messages")
    return "".join(found)
