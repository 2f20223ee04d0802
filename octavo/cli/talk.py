"""What a chat is, without its terminal: what was said, its commands, where streamed markdown may be cut. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from octavo.config.suggest import nearest
from octavo.types import CompletionOutput, FinishReason, Message, Metrics, TokenLogprobs

COMMANDS = {
    "/help": "this list",
    "/reset": "forget the conversation",
    "/system": "/system TEXT sets the system message (empty: none) and starts anew",
    "/stats": "speed and tokens of the last answer",
    "/exit": "leave (also Ctrl-D)",
}
ALIASES = {"/?": "/help", "/quit": "/exit", "/bye": "/exit", "/clear": "/reset"}
KEYS = """\
Enter sends. Several lines: paste them, end a line with \\, put them between \"\"\" and \"\"\", or press Alt-Enter.
Ctrl-C stops an answer, or clears what you typed; where there is neither, a second one leaves.
A message that begins with a blank is not kept in the history, and is no command."""

_FENCE = re.compile(r"^\s*(```|~~~)", re.MULTILINE)
_WORD = re.compile(r"/[a-z?]{1,12}")


def help_text() -> str:
    """For /help."""
    return "\n".join([*(f"{name:<9} {text}" for name, text in COMMANDS.items()), KEYS])


def command(line: str) -> tuple[str, str] | None:
    """The command that a message is, and what follows its name; None: it is none, as one that begins with a path."""
    name, _, rest = line.partition(" ")
    name = ALIASES.get(name, name)
    if name not in COMMANDS or (rest.strip() and name != "/system"):
        return None
    return name, rest.strip()


def misspelled(line: str) -> str | None:
    """Words for a message that looks like a command, and is nearly one."""
    if not _WORD.fullmatch(line.rstrip()) or command(line) is not None:
        return None
    near = nearest(line.strip()[1:], [name[1:] for name in COMMANDS])
    if near is None:
        return None
    return f"no command {line.rstrip()}; did you mean /{near}? To send it as it is, put a blank before it."


def split_finished(text: str) -> tuple[str, str]:
    """Split streamed markdown into blocks that no later text can change, and the rest.

    The border is the last blank line outside a code fence; the parts joined are the text.
    """
    border = 0
    for match in re.finditer(r"\n\n+", text):
        if len(_FENCE.findall(text[: match.start()])) % 2 == 0:
            border = match.end()
    return text[:border], text[border:]


def cut_note(reason: FinishReason | None, max_tokens: int | None, metrics: Metrics) -> str | None:
    """Why an answer ends in the middle; None when it does not."""
    if reason != "length":
        return None
    if max_tokens is not None and metrics.completion_tokens >= max_tokens:
        return f"cut after {max_tokens} tokens; ask it to go on, or start with a larger --max-tokens"
    used = metrics.prompt_tokens + metrics.completion_tokens
    return f"cut: the model's context of {used} tokens is full; /reset starts anew"


class Conversation:
    """The messages so far; owned by the chat loop."""

    def __init__(self, system: str | None) -> None:
        self.messages: list[Message] = []
        self.last: Metrics | None = None
        self.reset(system)

    def reset(self, system: str | None) -> None:
        self.system = system
        self.messages = [Message("system", system)] if system else []


def logprob_rows(tokens: Sequence[TokenLogprobs | None], text_of: dict[int, str]) -> list[str]:
    """A line for each token: its log-probability, and the most likely ones in its place."""
    rows = []
    for token in tokens:
        if token is None:
            continue
        others = "  ".join(f"{text_of[top.token_id]!r} {top.logprob:.2f}" for top in token.top)
        rows.append(f"{token.logprob:8.2f} {text_of[token.token_id]!r}" + (f"  | {others}" if others else ""))
    return rows


def ids_of(output: CompletionOutput, prompt: Sequence[TokenLogprobs | None] | None) -> set[int]:
    """Ids whose text `logprob_rows` needs."""
    tokens = [token for token in (*(prompt or ()), *(output.logprobs or ())) if token is not None]
    return {token.token_id for token in tokens} | {top.token_id for token in tokens for top in token.top}
