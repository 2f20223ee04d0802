"""Mistral: `[TOOL_CALLS] [{"name": "f", "arguments": {…}}, …]`, and since 2025 `[TOOL_CALLS]f[ARGS]{…}` each."""

from __future__ import annotations

import re
import secrets
import string

from octavo.text.toolcalls.family import Family, Form
from octavo.text.toolcalls.json_calls import JsonCalls
from octavo.text.toolcalls.json_text import JsonText
from octavo.text.toolcalls.parser import Steps

TAG, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_NAME = re.compile(r"[^\s\[{]+")
_ID = re.compile(r"[^\[]+")
_LETTERS = string.ascii_letters + string.digits


class MistralParser(JsonCalls):
    def calls(self) -> Steps[None]:
        while (yield from self.until(TAG)):
            yield from self.blanks()
            if (yield from self.peek()) in ("[", "{"):
                yield from self.json_calls()
            else:
                yield from self._named()
            if self.holding:
                self.no_call()

    def _named(self) -> Steps[None]:
        name = yield from self.name(_NAME, end="[{ \n")
        if name not in self.tools:
            return
        if (yield from self.literal(CALL_ID)):
            yield from self.name(_ID, end="[")
        yield from self.literal(ARGS)
        yield from self.blanks()
        if (yield from self.peek()) != "{":
            return
        self.begin(name)
        yield from self.value_arguments(JsonText())
        self.end()

    def call_id(self) -> str:
        """Nine letters and digits: Mistral's templates insist on it."""
        return "".join(secrets.choice(_LETTERS) for _ in range(9))


FAMILY = Family(
    name="mistral",
    aliases=("mistral_json",),
    in_template=((TAG,),),
    parser=MistralParser,
    markers=(TAG, ARGS, CALL_ID),
    form=Form(
        start='[TOOL_CALLS][', before='{"name": "', between='", "arguments": ', after="}", separator=", ", end="]",
        trigger=TAG,
    ),
)  # fmt: skip
NAMED = Family(
    name="mistral_args",
    in_template=((TAG, ARGS),),
    parser=MistralParser,
    markers=(TAG, ARGS, CALL_ID),
    form=Form(before="[TOOL_CALLS]", between="[ARGS]", separator="", trigger=TAG),
)
