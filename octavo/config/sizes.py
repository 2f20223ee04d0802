"""Sizes as people write them. Apart from resolve.py because the server, which knows no hardware, reads them too."""

from __future__ import annotations

from octavo.errors import ConfigError

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_bytes(text: str, option: str) -> int:
    """'512MiB' → 536870912. Raises ConfigError that names the option."""
    number = text.strip().lower().rstrip("kmgib")
    unit = text.strip().lower()[len(number) :]
    try:
        if unit not in _UNITS or (size := int(float(number) * _UNITS[unit])) <= 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise ConfigError(f"{option}: {text!r} is not a size; write it as 512MiB or 4GiB") from None
    return size
