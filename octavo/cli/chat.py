"""`octavo chat`: a conversation in the terminal. Markdown appears as it is generated; Ctrl-C stops the answer only."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from octavo.cli.fetch import fetch_with_progress
from octavo.client.offline import LLMEngine
from octavo.config.engine import EngineConfig
from octavo.errors import ApiError
from octavo.types import Delta, Message, Metrics, SamplingParams

HELP = """\
/reset          forget the conversation
/system TEXT    set the system message (empty: remove it) and start anew
/stats          speed and tokens of the last answer
/help           this list
/exit           leave (also Ctrl-D)
Ctrl-C stops an answer. A line that ends in \\ goes on in the next."""

_FENCE = re.compile(r"^\s*(```|~~~)", re.MULTILINE)


def split_finished(text: str) -> tuple[str, str]:
    """Split streamed markdown into blocks that no later text can change, and the rest.

    The border is the last blank line outside a code fence; the parts joined are the text.
    """
    border = 0
    for match in re.finditer(r"\n\n+", text):
        if len(_FENCE.findall(text[: match.start()])) % 2 == 0:
            border = match.end()
    return text[:border], text[border:]


class Conversation:
    """The messages so far; owned by the chat loop."""

    def __init__(self, system: str | None) -> None:
        self.messages: list[Message] = []
        self.last: Metrics | None = None
        self.reset(system)

    def reset(self, system: str | None) -> None:
        self.system = system
        self.messages = [Message("system", system)] if system else []


def _show_stream(console: Console, deltas: Iterable[Delta]) -> str:
    """Print deltas as markdown while they come; finished blocks scroll away, the last one is redrawn. → whole text"""
    shown, tail = "", ""
    if not console.is_terminal:
        for delta in deltas:
            shown += delta.text
            print(delta.text, end="", flush=True)
        print()
        return shown
    with Live(Text("…", style="dim"), console=console, refresh_per_second=12, transient=True) as live:
        try:
            for delta in deltas:
                finished, tail = split_finished(tail + delta.text)
                if finished:
                    live.console.print(Markdown(finished))
                    shown += finished
                live.update(Markdown(tail))
        except KeyboardInterrupt:
            live.update(Text(""))
            console.print(Markdown(tail))
            console.print("stopped", style="dim")
            return shown + tail
    if tail:
        console.print(Markdown(tail))
    return shown + tail


def _answer(console: Console, engine: LLMEngine, talk: Conversation, text: str, params: SamplingParams) -> None:
    talk.messages.append(Message("user", text))
    try:
        stream = engine.stream_chat(talk.messages, params)
        answer = _show_stream(console, stream)
        talk.last = stream.metrics
        talk.messages.append(Message("assistant", answer))
    except ApiError as error:
        talk.messages.pop()
        console.print(f"{error.message}", style="red")
    except KeyboardInterrupt:
        console.print("stopped", style="dim")
    console.print()


def _stats(console: Console, last: Metrics | None) -> None:
    if last is None:
        console.print("no answer yet", style="dim")
        return
    console.print(
        f"prompt {last.prompt_tokens} tokens ({last.cached_tokens} from the cache), "
        f"answer {last.completion_tokens} tokens\n"
        f"first token after {last.time_to_first_token_ms:.0f} ms, then {last.tokens_per_second:.1f} tokens/s",
        style="dim",
    )


def _command(console: Console, talk: Conversation, line: str) -> bool:
    """Carry out a /command. → False to leave."""
    name, _, rest = line.partition(" ")
    if name in ("/exit", "/quit", "/bye"):
        return False
    if name == "/reset":
        talk.reset(talk.system)
        console.print("conversation forgotten", style="dim")
    elif name == "/system":
        talk.reset(rest.strip() or None)
        console.print("system message set" if talk.system else "no system message", style="dim")
    elif name == "/stats":
        _stats(console, talk.last)
    elif name == "/help":
        console.print(HELP, style="dim", markup=False)
    else:
        console.print(f"unknown command {name}; /help lists them", style="red", markup=False)
    return True


def _read(prompt: str) -> str:
    """One message; a line ending in a backslash goes on in the next."""
    lines = [input(prompt)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input("… "))
    return "\n".join(lines).strip()


def run_chat(config: EngineConfig, *, system: str | None, temperature: float | None, max_tokens: int) -> None:
    """Run until /exit, end of input or Ctrl-C twice at the prompt."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (gives input() editing and history)
    console = Console(highlight=False)
    files = fetch_with_progress(config)
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens)
    prompt = "> " if sys.stdin.isatty() else ""
    with console.status("loading the model…"):
        engine = LLMEngine(config)
    with engine:
        console.print(f"{files.name} · /help lists the commands\n", style="dim")
        talk = Conversation(system)
        interrupted = False
        while True:
            try:
                line = _read(prompt)
            except KeyboardInterrupt:  # may be meant for an answer that has just ended: leave at the second
                if interrupted:
                    return
                interrupted = True
                console.print("\nCtrl-C once more, Ctrl-D or /exit leaves", style="dim", markup=False)
                continue
            except EOFError:
                console.print()
                return
            interrupted = False
            if line.startswith("/"):
                if not _command(console, talk, line):
                    return
            elif line:
                _answer(console, engine, talk, line, params)
