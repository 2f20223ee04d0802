"""`octavo chat`: a conversation in the terminal. Markdown appears as it is generated; Ctrl-C stops the answer only.

Piped input is one message, its answer plain text on standard output. Everything that is about the chat and not of it
goes to standard error where standard output is no terminal.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from octavo import env
from octavo.cli import talk, terminal
from octavo.cli.fetch import fetch_with_progress
from octavo.client.offline import LLMEngine, TokenStream
from octavo.client.prepare import for_terminal
from octavo.config.commands import ChatOptions
from octavo.config.engine import EngineConfig
from octavo.errors import ApiError, ConfigError, ContextLengthExceeded
from octavo.types import Delta, Message, Metrics, RequestOutput, SamplingParams


class Screen:
    """Where answers and words about them appear."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.is_drawn = self.console.is_terminal and not self.console.is_dumb_terminal
        self._about = self.console if self.console.is_terminal else Console(highlight=False, stderr=True)

    def note(self, text: str, style: str = "dim") -> None:
        self._about.print(Text(text), style=style)

    def answer(self, stream: TokenStream, stop: terminal.Stop) -> str:
        """Shows the first choice while it comes, until Ctrl-C; → its text."""
        return self._drawn(stream, stop) if self.is_drawn else self._printed(stream, stop)

    def _drawn(self, stream: TokenStream, stop: terminal.Stop) -> str:
        """As markdown: finished blocks scroll away, the last one is drawn again and again."""
        shown, tail = "", ""
        region = terminal.Region(self.console)
        region.draw(Text("…", style="dim"), now=True)
        try:
            for delta in stream:
                finished, tail = talk.split_finished(tail + _text(delta))
                if finished:
                    region.clear()
                    self.console.print(terminal.markdown(finished), "")
                    shown += finished
                if tail:
                    region.draw(terminal.markdown(tail))
                if stop.pressed:
                    stream.close()
                    break
        finally:
            region.clear()
            if tail.strip():
                self.console.print(terminal.markdown(tail))
        return shown + tail

    def _printed(self, stream: TokenStream, stop: terminal.Stop) -> str:
        shown = ""
        for delta in stream:
            text = _text(delta)
            print(terminal.visible(text) if self.console.is_terminal else text, end="", flush=True)
            shown += text
            if stop.pressed:
                stream.close()
                break
        print()
        return shown


def _text(delta: Delta) -> str:
    return delta.text if delta.index == 0 else ""


class Chat:
    """One conversation with a loaded model."""

    def __init__(self, engine: LLMEngine, screen: Screen, params: SamplingParams, options: ChatOptions) -> None:
        self._engine = engine
        self._screen = screen
        self._params = for_terminal(params, engine.defaults)
        self._template_kwargs = options.chat_template_kwargs
        self._talk = talk.Conversation(options.system)

    def ask(self, text: str) -> bool:
        """Shows the answer to a message; → whether Ctrl-C stopped it. Raises ApiError for one that cannot be asked."""
        messages = self._talk.messages
        messages.append(Message("user", text))
        try:
            with terminal.interruptible() as stop:
                stream = self._engine.stream_chat(messages, self._params, chat_template_kwargs=self._template_kwargs)
                answer = self._screen.answer(stream, stop)
        except BaseException:
            messages.pop()
            raise
        self._talk.last = stream.metrics
        messages.append(Message("assistant", answer))
        if stop.pressed:
            self._screen.note("stopped")
        else:
            self._after(stream.output())
        return stop.pressed

    def _after(self, output: RequestOutput) -> None:
        """What there is to say of an answer that has ended by itself."""
        for choice in output.outputs:
            if choice.index:
                self._screen.note(f"choice {choice.index + 1}:")
                text = choice.text
                self._screen.console.print(terminal.markdown(text) if self._screen.is_drawn else Text(text))
            note = talk.cut_note(choice.finish_reason, self._params.max_tokens, output.metrics)
            if note is not None:
                self._screen.note(note, "yellow")
            ids = talk.ids_of(choice, output.prompt_logprobs if choice.index == 0 else None)
            text_of = {token: self._engine.tokenizer.decode([token], skip_special_tokens=False) for token in ids}
            prompt = (output.prompt_logprobs or []) if choice.index == 0 else []
            for row in talk.logprob_rows([*prompt, *(choice.logprobs or [])], text_of):
                self._screen.note(row)

    def command(self, name: str, rest: str) -> bool:
        """Carries out a /command. → False to leave."""
        if name == "/reset":
            self._talk.reset(self._talk.system)
            self._screen.note("conversation forgotten")
        elif name == "/system":
            self._talk.reset(rest or None)
            self._screen.note("system message set" if rest else "no system message")
        elif name == "/stats":
            self._screen.note(_stats(self._talk.last))
        elif name == "/help":
            self._screen.note(talk.help_text())
        return name != "/exit"


def _stats(last: Metrics | None) -> str:
    if last is None:
        return "no answer yet"
    return (
        f"prompt {last.prompt_tokens} tokens ({last.cached_tokens} from the cache), "
        f"answer {last.completion_tokens} tokens\n"
        f"first token after {last.time_to_first_token_ms:.0f} ms, then {last.tokens_per_second:.1f} tokens/s"
    )


def run_chat(config: EngineConfig, params: SamplingParams, options: ChatOptions) -> None:
    """Until /exit, Ctrl-D or a second Ctrl-C; with piped input until its answer."""
    piped = None if sys.stdin.isatty() else _read_piped()
    screen = Screen()
    files = fetch_with_progress(config)
    with screen.console.status("loading the model…") if screen.is_drawn else nullcontext():
        engine = LLMEngine(config)
    with engine:
        chat = Chat(engine, screen, params, options)
        if piped is not None:
            chat.ask(piped)
            return
        screen.note(f"{files.name} · /help lists the commands\n")
        _converse(chat, screen, options)


def _read_piped() -> str:
    """Standard input to its end. Raises ConfigError when there is nothing in it."""
    text = sys.stdin.buffer.read().decode(errors="replace").strip()
    if not text:
        raise ConfigError("standard input is empty; pipe a message in, or run octavo chat in a terminal")
    return text


class _Next(NamedTuple):
    begun: str = ""
    """What stands in the input line already."""
    interrupted: bool = False
    """Ctrl-C was pressed last: once more, and the chat ends."""


def _converse(chat: Chat, screen: Screen, options: ChatOptions) -> None:
    from octavo.cli.lines import Input

    source = Input(env.cache_dir() / "chat-history" if options.history else None)
    state: _Next | None = _Next()
    with terminal.interruptible(twice=False) as between:  # the input line's own Ctrl-C is a key
        while state is not None:
            try:
                if between.pressed:
                    between.pressed = False
                    raise KeyboardInterrupt
                typed = source.read(state.begun)
                between.pressed = False  # a message was typed since
                state = _turn(chat, screen, typed)
            except EOFError:
                return
            except KeyboardInterrupt:  # may be meant for an answer that has just ended: leave at the second
                if state is not None and state.interrupted:
                    return
                state = _Next(interrupted=True)
                screen.note("Ctrl-C once more, Ctrl-D or /exit leaves")


def _turn(chat: Chat, screen: Screen, typed: str) -> _Next | None:
    """What comes of one message. → None to leave."""
    from octavo.cli.lines import message

    after = _Next()
    if (found := talk.command(typed)) is not None:
        if not chat.command(*found):
            return None
    elif (hint := talk.misspelled(typed)) is not None:
        screen.note(hint, "yellow")
    elif text := message(typed).strip():
        try:
            with terminal.quiet_keys(screen.console) as keys:
                stopped = _ask(chat, screen, text)
        except KeyboardInterrupt:  # the second during one answer
            return None
        if keys.ended:
            return None
        after = _Next(keys.text, stopped)
    screen.note("")
    return after


def _ask(chat: Chat, screen: Screen, text: str) -> bool:
    try:
        return chat.ask(text)
    except ContextLengthExceeded as error:
        screen.note(f"{error.message}; /reset forgets the conversation", "red")
    except ApiError as error:
        screen.note(error.message, "red")
    return False
