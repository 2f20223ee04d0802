"""Llama 3.1 to 3.3: `{"name": "f", "parameters": {…}}` at the start of the answer or of a line, or behind
`<|python_tag|>`; several with `;` between them."""

from __future__ import annotations

from octavo.text.toolcalls.family import Family, Form
from octavo.text.toolcalls.json_calls import JsonCalls
from octavo.text.toolcalls.parser import Steps

TAG, LINE = "<|python_tag|>", "\n{"


class Llama3Parser(JsonCalls):
    needs_arguments = True

    def calls(self) -> Steps[None]:
        yield from self.blank_content()
        begins = (yield from self.peek()) == "{"
        while begins or (marker := (yield from self.until(TAG, LINE))):
            if not begins and marker == TAG:
                yield from self.blanks()
            elif not begins:
                self.untake(1)
            yield from self.json_calls()
            if self.holding:
                self.no_call()
                begins = False
                continue
            self.hold()
            yield from self.blanks()
            yield from self.literal(";")
            yield from self.blanks()
            begins = (yield from self.peek()) == "{"
            if begins:
                self.skip()
            else:
                self.no_call()


FAMILY = Family(
    name="llama3_json",
    aliases=("llama3", "llama4_json"),
    in_template=(('{"name":', '"parameters":'),),
    parser=Llama3Parser,
    markers=(TAG,),
    form=Form(before='{"name": "', between='", "parameters": ', after="}", separator="; ", trigger=None),
)
