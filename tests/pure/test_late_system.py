"""System messages in the middle of a conversation: where a template takes them, else in the user's turn."""

from __future__ import annotations

import pytest
from tiny_text import byte_level

from octavo.text.late_system import in_place
from octavo.text.template import ChatTemplate
from octavo.types import Message

TURN = "[{{ m.role }}]{{ m.content }}"
ANYWHERE = "{% for m in messages %}" + TURN + "{% endfor %}"
IS_LATE = "m.role == 'system' and not loop.first"
FIRST = (
    "{% for m in messages %}{% if "
    + IS_LATE
    + " %}{{ raise_exception('too late') }}{% endif %}"
    + TURN
    + "{% endfor %}"
)
HIDDEN = "{% for m in messages %}{% if not (" + IS_LATE + ") %}" + TURN + "{% endif %}{% endfor %}"
SAID = [("system", "s"), ("system", "t"), ("user", "a"), ("system", "now"), ("assistant", "b"), ("system", "then"),
        ("user", "c")]  # fmt: skip
MESSAGES = [Message(role=role, content=text) for role, text in SAID]


def shown(source: str, messages: list[Message]) -> str:
    template = ChatTemplate({"default": source}, byte_level())
    return template.render(in_place(template, messages), add_generation_prompt=True)


def test_a_template_that_takes_them_anywhere_gets_them_there() -> None:
    assert shown(ANYWHERE, MESSAGES) == "".join(f"[{role}]{text}" for role, text in SAID)


@pytest.mark.parametrize("source", [FIRST, HIDDEN])
def test_others_get_them_with_the_user(source: str) -> None:
    reminders = [f"<system-reminder>\n{text}\n</system-reminder>" for text in ("now", "then")]
    expected = f"[system]s\nt[user]a\n{reminders[0]}[assistant]b[user]{reminders[1]}\nc"
    assert shown(source, MESSAGES) == expected


def test_parts_stay_parts_and_what_is_no_text_stays_for_the_template() -> None:
    image = {"type": "image_url", "image_url": "x"}
    messages = [Message(role="user", content="a"), Message(role="system", content=[image])]
    template = ChatTemplate({"default": FIRST}, byte_level())
    (message,) = in_place(template, messages)
    assert message.content == [{"type": "text", "text": "a"}, image]


def test_nothing_changes_without_late_ones() -> None:
    messages = [Message(role="system", content="s"), Message(role="user", content="a")]
    template = ChatTemplate({"default": FIRST}, byte_level())
    assert in_place(template, messages) is messages
