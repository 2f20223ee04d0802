"""The API keys that the options name, read once and checked. Called by the supervisor, and by the server when alone.

Invariant: no message holds a key, and options that name a key source never end in no key at all: a server whose
operator believes it closed is closed, or does not start.
"""

from __future__ import annotations

import logging
import re
import stat
from pathlib import Path
from typing import NamedTuple

import msgspec

from octavo.config.engine import ServerConfig
from octavo.errors import ConfigError

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 1 << 20
MAX_KEY_LEN = 1024
_NAMED = re.compile(r"(?P<name>[A-Za-z0-9][\w.@-]{0,63})(?:[ \t]+[:=][ \t]*|[:=][ \t]+)(?P<key>\S+)", re.ASCII)


class ApiKey(NamedTuple):
    name: str
    """Of whom it is, for logs: as given, else key-1, key-2 … by its place."""
    key: str


def api_keys(config: ServerConfig) -> tuple[ApiKey, ...]:
    """Those of --api-key and --api-key-file; none: the server is open to all. Raises ConfigError."""
    given = [_checked(text, "--api-key") for text in config.api_key]
    if config.api_key_file is not None:
        given += _read(Path(config.api_key_file))
    found: dict[str, ApiKey] = {}
    for number, (name, key) in enumerate(given, 1):
        known = found.setdefault(key, ApiKey(name or f"key-{number}", key))
        if name and known.name != name:
            raise ConfigError(f"--api-key: one and the same key is called {known.name} and {name}; give each its own")
    return tuple(found.values())


def with_keys_read(config: ServerConfig) -> ServerConfig:
    """The same, its key file read. Raises ConfigError."""
    keys = tuple(f"{name}: {key}" for name, key in api_keys(config))
    return msgspec.structs.replace(config, api_key=keys, api_key_file=None)


def bare(text: str) -> str:
    """The key alone of what --api-key takes."""
    return match["key"] if (match := _NAMED.fullmatch(text.strip())) else text.strip()


def _read(path: Path) -> list[tuple[str, str]]:
    at = f"--api-key-file {path}"
    try:
        with path.open("rb") as file:
            mode = path.stat().st_mode
            text = file.read(MAX_FILE_BYTES + 1).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{at}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{at}: not UTF-8 text; write one key a line") from None
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(f"{at}: more than {MAX_FILE_BYTES} bytes; write one key a line")
    if stat.S_ISREG(mode) and mode & stat.S_IROTH:
        logger.warning("every user of this machine can read %s; chmod 600 hides its keys", path)
    lines = [line.strip() for line in text.splitlines()]
    keys = [_checked(line, f"{at}, line {i}") for i, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"{at}: holds no key; write one a line")
    return keys


def _checked(text: str, at: str) -> tuple[str, str]:
    """→ name (may be empty) and key. The blank beside the sign tells a name from a key that holds the sign."""
    name, key = (match["name"], match["key"]) if (match := _NAMED.fullmatch(text)) else ("", text)
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"{at}: a key is printable ASCII without blanks, as it travels in a header; with a name it is `NAME: KEY`"
        )
    if len(key) > MAX_KEY_LEN:
        raise ConfigError(f"{at}: a key has {len(key)} characters; at most {MAX_KEY_LEN}")
    return name, key
