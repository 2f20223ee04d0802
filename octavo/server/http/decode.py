"""A request body becomes a typed struct or a RequestError whose `param` names the field.

Strict: no string where a number is meant, no NaN, no Infinity. A top-level null means
the field was left out, as OpenAI's clients send it; a top-level 1.0 is the integer 1, as JSON Schema has it.

The decoder keeps the event loop and all streams waiting, in a thread too; so a large body is first looked through piece
by piece, and refused if it holds more values than can be made in the time of a step.
"""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request

from octavo.errors import RequestError
from octavo.server.core.defaults import Decodes
from octavo.server.core.errors import UnsupportedMediaType
from octavo.server.core.turns import INLINE_BYTES, gathered

T = TypeVar("T")

_AT = re.compile(r" - at (?:`key` in )?`\$(.*?)`$")
_MISSING = re.compile(r"missing required field `(\w+)`")
_BYTE = re.compile(r" ?\(byte (\d+)\)")
_TOKEN = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
"""A string, or the beginning of one that does not end, so that a text is looked through once; or a bracket."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
_INTEGRAL = re.compile(rb"\A(-?[0-9]{1,18})\.0+\Z")
_SCAN_LIMIT = 1 << 14
"""Bytes that are searched for the name of the field in which malformed JSON breaks off."""
_DEPTH_LIMIT = 64
_HOPELESS_DEPTH = 10_000

MAX_STRINGS, MAX_CONTAINERS, MAX_VALUES, MAX_ESCAPES = 100_000, 50_000, 1_000_000, 4_000_000
"""In one body; each bound is 10 to 20 ms of decoding."""
_PIECE = 1 << 14
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("|\\?\Z)', re.DOTALL)
"""A string, or what there is of it in this piece; the group is its closing quote."""

_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


def require_json(headers: Headers) -> None:
    """Raises UnsupportedMediaType for any type but JSON, for none (which a browser sends for a page without asking),
    for another charset, or for a compressed body."""
    kind, _, rest = headers.get("content-type", "").partition(";")
    kind = kind.strip().lower()
    if not kind:
        raise UnsupportedMediaType("there is no Content-Type; send application/json")
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMediaType(f"Content-Type is {kind[:80]!r}; send application/json")
    charset = rest.lower().partition("charset=")[2].strip(' "')
    if charset and charset not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType(f"charset {charset[:40]!r} is not supported; send UTF-8")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("compressed request bodies are not supported; send the JSON as it is")


async def read(decoder: Decodes[T], request: Request) -> T:
    """The request's body, decoded without keeping other streams waiting. Raises as `decode` does."""
    body = await request.body()
    if len(body) > INLINE_BYTES:
        await _check_extent(body)
    return await gathered(len(body), lambda: decode(decoder, body))


async def _check_extent(body: bytes) -> None:
    """Raises RequestError for a body of too many values. Texts may be as long as the body."""
    strings = containers = values = escapes = depth = 0
    prefix, settled = b"", 0
    for at in range(0, len(body), _PIECE):
        rest, begun = _STRING.subn(rb"\1", prefix + body[at : at + _PIECE])
        ended = rest.count(b'"')
        # A string that goes on is opened again in the next piece, with the backslash that belongs to its next byte.
        prefix = b"" if begun == ended else b'"\\' if rest.endswith(b"\\") else b'"'
        lowest = depth
        for bracket in rest.translate(None, _NO_BRACKETS):
            if bracket in b"[{":
                depth, containers = depth + 1, containers + 1
            else:
                depth -= 1
                lowest = min(lowest, depth)
        if depth > _HOPELESS_DEPTH:
            return  # the decoder gives up there, and says where that is
        strings, values = strings + ended, values + rest.count(b",")
        escapes += body.count(b"\\", at, at + _PIECE)
        for what, count, limit in (
            ("strings", strings, MAX_STRINGS),
            ("arrays and objects", containers, MAX_CONTAINERS),
            ("values", values, MAX_VALUES),
            ("escapes in its texts", escapes, MAX_ESCAPES),
        ):
            if count > limit:
                param = await asyncio.to_thread(_field_at, body, min(settled, len(body)))
                raise RequestError(f"the body holds more than {limit} {what}", param=param, code="invalid_value")
        if lowest < 2:
            settled = at + _PIECE  # the top-level field may be another one by now
        await asyncio.sleep(0)


def decode(decoder: Decodes[T], body: bytes) -> T:
    """Raises RequestError (code invalid_json when the body is no JSON; `param` names the field where known)."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        if "got `null`" in str(error) or "got `float`" in str(error):
            return _relaxed(decoder, body, error)
        raise _invalid(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(body, str(error)) from None
    except RecursionError:
        raise RequestError(
            "the JSON body is nested too deeply", param=_field_at_depth(body, _DEPTH_LIMIT), code="invalid_json"
        ) from None


def _relaxed(decoder: Decodes[T], body: bytes, first: msgspec.ValidationError) -> T:
    try:
        raw = {name: bytes(value) for name, value in _raw_object.decode(body).items()}
        fields = {name: msgspec.Raw(_integer(value)) for name, value in raw.items() if value != b"null"}
        return decoder.decode(msgspec.json.encode(fields))
    except msgspec.ValidationError as error:
        raise _invalid(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _invalid(first) from None


def _integer(value: bytes) -> bytes:
    """1 for 1.0; anything else as it is."""
    return _INTEGRAL.sub(rb"\1", value) if len(value) < 64 else value


def _invalid(error: msgspec.ValidationError) -> RequestError:
    text = str(error)
    found = _AT.search(text)
    path = found.group(1).replace("[...]", "").lstrip(".") if found else ""
    message = _AT.sub("", text)
    if missing := _MISSING.search(message):
        path = f"{path}.{missing.group(1)}" if path else missing.group(1)
        return RequestError.about(path, "is required", code="missing_required_parameter")
    if not path:
        return RequestError(f"the body must be a JSON object: {message}", code="invalid_json")
    message = message[:1].lower() + message[1:]
    if message == "number out of range":
        message = "the number must be finite"
    return RequestError(f"{path}: {message}", param=path, code="invalid_value")


def _malformed(body: bytes, text: str) -> RequestError:
    position = _BYTE.search(text)
    surrogate = _search(_SURROGATE, body) if "truncated" in text or "utf-8" in text or "surrogate" in text else None
    if surrogate:
        at, why = surrogate.start(), "a string holds half of a surrogate pair, which is not valid Unicode"
    elif "utf-8" in text:
        return RequestError("the body is not valid UTF-8", code="invalid_json")
    elif position:
        at, why = int(position.group(1)), _BYTE.sub("", text) + f" at byte {position.group(1)}"
    else:
        at, why = len(body), text
    if body[at : at + 3] == b"NaN" or body[at : at + 8].lstrip(b"-") in (b"Infinity", b"Infinit"):
        why = "NaN and Infinity are not JSON; numbers must be finite"
    return RequestError(f"the body is not valid JSON: {why}", param=_field_at(body, at), code="invalid_json")


def _search(pattern: re.Pattern[bytes], body: bytes) -> re.Match[bytes] | None:
    """The first match of at most 4 bytes, looked for in pieces: a search keeps all threads waiting."""
    for at in range(0, len(body), _PIECE):
        if found := pattern.search(body, at, at + _PIECE + 3):
            return found
    return None


def _field_at(body: bytes, position: int) -> str | None:
    """The top-level key whose value holds the byte at `position`."""
    depth, key = 0, None
    if position > _SCAN_LIMIT:
        return None
    for token in _TOKEN.finditer(body, 0, position):
        text = token.group()
        if text[:1] == b'"':
            if depth == 1 and body[token.end() : token.end() + 16].lstrip()[:1] == b":":
                key = token.group(1)
        else:
            depth += 1 if text in b"[{" else -1
    return key.decode("utf-8", "replace")[:64] if key is not None and depth >= 1 else None


def _field_at_depth(body: bytes, limit: int) -> str | None:
    """The top-level key whose value nests deeper than `limit`."""
    depth = 0
    for token in _TOKEN.finditer(body, 0, _SCAN_LIMIT):
        text = token.group()
        if text[:1] != b'"':
            depth += 1 if text in b"[{" else -1
            if depth > limit:
                return _field_at(body, token.start())
    return None
