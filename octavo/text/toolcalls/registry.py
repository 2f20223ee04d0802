"""All families of tool calls, and which of them a model speaks: by name, or as its chat template shows.

A new family: its file beside this one, a row in FAMILIES.
"""

from __future__ import annotations

from octavo.errors import ConfigError
from octavo.text.toolcalls import glm, hermes, llama3_json, mistral, pythonic, qwen3_coder
from octavo.text.toolcalls.family import Family

FAMILIES: tuple[Family, ...] = (
    qwen3_coder.FAMILY,
    glm.FAMILY,
    glm.GLM4,
    mistral.NAMED,
    mistral.FAMILY,
    pythonic.FAMILY,
    hermes.FAMILY,
    llama3_json.FAMILY,
)
"""A template is given to the first whose strings it mentions: the more particular ones stand in front."""
DEFAULT = hermes.FAMILY
"""Of models whose template says nothing: toolcalls/prompt.py tells them to write like this."""

_BY_NAME = {name: family for family in FAMILIES for name in (family.name, *family.aliases)}


def by_name(name: str) -> Family:
    """Raises ConfigError that lists the known names."""
    family = _BY_NAME.get(name)
    if family is None:
        raise ConfigError(f"--tool-call-parser {name!r} is not known; there are {', '.join(sorted(_BY_NAME))}")
    return family


def of_template(source: str) -> Family:
    """The family whose calls a chat template writes."""
    for family in FAMILIES:
        if any(all(text in source for text in texts) for texts in family.in_template):
            return family
    return DEFAULT
