"""Reasoning in the form in which a client keeps it and sends it back. Nothing in it is secret."""

from __future__ import annotations

import base64
import binascii

from octavo.errors import Place, RequestError

SEALED = "octavo-reasoning-1."
"""Begins the `encrypted_content` that this server writes: the reasoning's own text, for clients that send back only
that and not the content. It hides nothing: the client has the text beside it."""


def sealed(reasoning: str) -> str:
    return SEALED + base64.urlsafe_b64encode(reasoning.encode()).decode()


def unsealed(text: str, place: Place) -> str:
    try:
        return base64.b64decode(text[len(SEALED) :], b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        param = place / "encrypted_content"
        raise RequestError.about(param, "is not what this server gave") from None
