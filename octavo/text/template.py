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
from typing import Any

from octavo.errors import ContextLengthExceeded, Place, RequestError
from octavo.modelfiles.files import ModelFiles
from octavo.text.message_data import as_data, cut_at_tag, plain, tag_final_message
from octavo.text.template_files import templates_of
from octavo.text.template_trials import Takes
from octavo.text.tokenizer import Segment, Tokenizer, check_unicode
from octavo.types import Message

_RESERVED = frozenset(
    {"messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize"}
)
# Rare symbols and ideographs, to mark special tokens with: printable, so that repr() and JSON leave them as they are.
_MARKS = (range(0x1D800, 0x1DA00), range(0x20000, 0x2A6D7))

NORMALIZED = 4
"""So many times shorter a tokenizer may make a text before it looks for tokens."""


class ChatTemplate:
    """The chat templates of one model by name; a model without any refuses chat requests, not completions."""

    def __init__(self, templates: dict[str, str], tokenizer: Tokenizer) -> None:
        self._sources = templates
        self._tokenizer = tokenizer
        self._compiled: dict[str, Any] = {}
        """By name: of those that a request can choose, two at most."""
        self.takes = Takes(self._show)
        specials = sorted(tokenizer.special_texts, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, specials)) or "(?!)")

    @classmethod
    def load(cls, files: ModelFiles, tokenizer: Tokenizer) -> ChatTemplate:
        """Read the templates beside the weights. Raises ModelFileError when one is there but not readable."""
        return cls(templates_of(files), tokenizer)

    @property
    def source(self) -> str | None:
        """The text of the default template, where there is one."""
        return self._sources.get("default")

    @cached_property
    def sources(self) -> str:
        """All of the model's templates, to look for what they mention."""
        return "\n".join(self._sources.values())

    @property
    def knows_tools(self) -> bool:
        """Whether the tools of a request appear in its prompt."""
        return "tools" in self.sources if self.takes.tools is None else self.takes.tools

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
        if max_tokens is not None:
            self._check_size(messages, max_tokens)
        inputs = self._inputs(messages, tools, kwargs, add_generation_prompt, continue_final_message)
        texts = list(_strings(inputs))
        if not any(self._special.search(text) for text in texts):
            text = self._render(inputs, continue_final_message, "")
            return self._tokenizer.encode_segments(self._tokenizer.split_special(text), max_tokens=max_tokens)
        marks = _unused_characters([*texts, *self._sources.values()])
        try:
            marked = self._mark(inputs, marks)
        except RecursionError:
            raise RequestError("the messages or tools are nested too deeply", param="messages") from None
        text = self._render(marked, continue_final_message, marks)
        return self._tokenizer.encode_segments(self._unmarked(text, marks), max_tokens=max_tokens)

    def _check_size(self, messages: Sequence[Message], max_tokens: int) -> None:
        """Texts far longer than any text of so many tokens are refused before they are copied and rendered. Raises
        ContextLengthExceeded."""
        size = sum(len(message.content) for message in messages if isinstance(message.content, str))
        tokens = size // (NORMALIZED * self._tokenizer.most_characters)
        if tokens > max_tokens:
            raise ContextLengthExceeded(
                f"the messages have at least {tokens} tokens, but at most {max_tokens} fit the context",
                param="messages",
                facts={"tokens": tokens, "limit": max_tokens},
            )

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
        self._template(tools)
        with_tools = tools is not None
        try:
            chat = [as_data(m, Place("messages", i), self.takes, with_tools=with_tools) for i, m in enumerate(messages)]
            inputs = {"documents": None, **plain(kwargs), "messages": chat, "tools": plain(tools)}
        except RecursionError:
            raise RequestError("the messages or tools are nested too deeply", param="messages") from None
        inputs["add_generation_prompt"] = add_generation_prompt
        for text in _strings(inputs):
            check_unicode(text)
        return inputs

    def _show(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str | None:
        """A trial's messages, rendered; None where the template refuses them."""
        inputs = {"documents": None, "messages": messages, "tools": tools, "add_generation_prompt": True}
        try:
            return self._render(inputs, False, "", is_trial=True)
        except RequestError:
            return None

    def _template(self, tools: list[dict[str, Any]] | None) -> Any:
        """The compiled template for this request."""
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
                self._compiled[name] = environment.compile_chat(self._sources[name])
            except (jinja2.TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
                raise RequestError(f"this model's chat template cannot be read: {error}", param="messages") from None
        return self._compiled[name]

    def _render(
        self, inputs: dict[str, Any], continue_final_message: bool, marks: str, *, is_trial: bool = False
    ) -> str:
        import jinja2

        from octavo.text import budget as budgets
        from octavo.text import sandbox

        template = self._template(inputs["tools"])
        if continue_final_message:
            inputs, final = tag_final_message(inputs)
        most = budgets.MAX_CHARS + 4 * sum(map(len, _strings(inputs)))
        budget = budgets.Budget(most, marks, budgets.TRIAL_SECONDS if is_trial else None)
        try:
            text = sandbox.render(template, budget, {**self._tokenizer.special_names, **inputs})
        except jinja2.TemplateError as error:
            raise RequestError(f"the chat template refused the messages: {error.message}", param="messages") from None
        except Exception as error:
            # Whatever a template does wrong is the request's or the model's fault, never the server's.
            raise RequestError(f"the chat template failed: {error}", param="messages") from None
        return cut_at_tag(text, final) if continue_final_message else text

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
