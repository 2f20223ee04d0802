"""Qwen3-Coder: `<tool_call><function=f><parameter=a>` value `</parameter></function></tool_call>`,
each tag on its line."""

from __future__ import annotations

import re

from octavo.text.toolcalls.family import ArgumentForm, Family, Form
from octavo.text.toolcalls.hermes import CLOSE, OPEN
from octavo.text.toolcalls.parser import Steps
from octavo.text.toolcalls.tagged import TaggedParser

FUNCTION, PARAMETER = "<function=", "<parameter="
_NAME = re.compile(r"[^<>\n]+")


class Qwen3CoderParser(TaggedParser):
    def calls(self) -> Steps[None]:
        """Some models leave the outer tag out."""
        while marker := (yield from self.until(OPEN, FUNCTION)):
            if marker == OPEN:
                yield from self.blanks()
                if (yield from self.peek()) == "<":
                    yield from self.literal(FUNCTION)
                    yield from self._function()
                else:
                    yield from self.body()
            else:
                yield from self._function()
            if self.holding:
                self.no_call()
            else:
                yield from self.closed(CLOSE)

    def _function(self) -> Steps[None]:
        name = (yield from self.name(_NAME, end=">")).strip()
        tool = self.tools.get(name)
        if tool is None or not (yield from self.literal(">")):
            return
        self.begin(name)
        num_arguments = 0
        while True:
            yield from self.blanks()
            if not (yield from self.literal(PARAMETER)):
                break
            key = (yield from self.name(_NAME, end=">")).strip()
            if not key or not (yield from self.literal(">")):
                break
            whole = yield from self.argument(tool, key, not num_arguments, "</parameter>", line_breaks=True)
            num_arguments += 1
            if not whole:
                break
        if (yield from self.literal("</function>")) or not self.cut_off:
            self.arguments("}" if num_arguments else "{}")
        self.end()


FAMILY = Family(
    name="qwen3_coder",
    aliases=("qwen3_xml",),
    in_template=(("<function=", "<parameter="),),
    parser=Qwen3CoderParser,
    markers=(OPEN, CLOSE),
    form=Form(
        before="<tool_call>\n<function=",
        between=">\n",
        after="</function>\n</tool_call>",
        separator="\n",
        trigger=OPEN,
        arguments=ArgumentForm(
            before="<parameter=",
            between=">\n",
            after="\n</parameter>\n",
            string_end="</parameter>",
            key=r"[^<>\s]+",
        ),
    ),
    reads_hermes=True,
)
