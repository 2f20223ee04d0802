"""Hermes, Qwen2.5, Qwen3 and most fine-tunes: `<tool_call>{"name": "f", "arguments": {…}}</tool_call>`, any number."""

from __future__ import annotations

from octavo.text.toolcalls.family import Family, Form
from octavo.text.toolcalls.json_calls import JsonCalls
from octavo.text.toolcalls.parser import Steps

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(JsonCalls):
    def calls(self) -> Steps[None]:
        while (yield from self.until(OPEN)):
            yield from self.body()
            if self.holding:
                self.no_call()
            else:
                yield from self.closed(CLOSE)

    def body(self) -> Steps[None]:
        yield from self.blanks()
        yield from self.json_calls()


FORM = Form(
    before='<tool_call>\n{"name": "', between='", "arguments": ', after="}\n</tool_call>", separator="\n", trigger=OPEN
)
FAMILY = Family(
    name="hermes",
    aliases=("qwen", "qwen2_5", "qwen3"),
    in_template=((OPEN,),),
    parser=HermesParser,
    markers=(OPEN, CLOSE),
    form=FORM,
    reads_hermes=True,
)
