"""GLM. 4.5 and later: `<tool_call>f<arg_key>a</arg_key><arg_value>…</arg_value></tool_call>`, line breaks
between the tags or none. Before that: the name on a line of its own, the arguments as JSON on the next."""

from __future__ import annotations

import re

from octavo.text.toolcalls.family import ArgumentForm, Family, Form
from octavo.text.toolcalls.hermes import CLOSE, OPEN
from octavo.text.toolcalls.json_text import JsonText
from octavo.text.toolcalls.parser import Parser, Steps
from octavo.text.toolcalls.tagged import TaggedParser

KEY, KEY_END, VALUE, VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
_NAME = re.compile(r"[^\s<{]+")
_KEY = re.compile(r"[^<]+")


class Glm45Parser(TaggedParser):
    def calls(self) -> Steps[None]:
        while (yield from self.until(OPEN)):
            yield from self.blanks()
            if (yield from self.peek()) in ("{", "["):
                yield from self.json_calls()
            else:
                yield from self._named()
            if self.holding:
                self.no_call()
            else:
                yield from self.closed(CLOSE)

    def _named(self) -> Steps[None]:
        name = yield from self.name(_NAME, end="< \n")
        tool = self.tools.get(name)
        yield from self.blanks()
        if tool is None or (yield from self.peek()) != "<":
            return
        self.begin(name)
        num_arguments = 0
        while True:
            yield from self.blanks()
            if not (yield from self.literal(KEY)):
                break
            key = (yield from self.name(_KEY, end="<")).strip()
            if not key or not (yield from self.literal(KEY_END)):
                break
            yield from self.blanks()
            if not (yield from self.literal(VALUE)):
                break
            whole = yield from self.argument(tool, key, not num_arguments, VALUE_END, line_breaks=False)
            num_arguments += 1
            if not whole:
                break
        if not self.cut_off:
            self.arguments("}" if num_arguments else "{}")
        self.end()


class Glm4Parser(Parser):
    def calls(self) -> Steps[None]:
        while (yield from self.more()):
            self.hold()
            name = yield from self.name(_NAME, end="\n")
            if name in self.tools and (yield from self.literal("\n")) and (yield from self.peek()) == "{":
                self.begin(name)
                yield from self.value_arguments(JsonText())
                self.end()
                continue
            self.no_call()
            if (yield from self.until("\n")):
                self.no_call()


FAMILY = Family(
    name="glm45",
    aliases=("glm", "glm47"),
    in_template=((KEY,),),
    parser=Glm45Parser,
    markers=(OPEN, CLOSE, KEY, KEY_END, VALUE, VALUE_END),
    form=Form(
        before="<tool_call>",
        between="",
        after="\n</tool_call>",
        separator="\n",
        trigger=OPEN,
        arguments=ArgumentForm(
            before="\n<arg_key>",
            between="</arg_key>\n<arg_value>",
            after="</arg_value>",
            string_end=VALUE_END,
            key=r"[^<\s]+",
        ),
    ),
    reads_hermes=True,
)
GLM4 = Family(
    name="glm4",
    aliases=("glm4_moe_json",),
    in_template=(("[gMASK]", "<|observation|>"),),
    parser=Glm4Parser,
    form=Form(before="", between="\n", separator="\n", trigger=None),
)
