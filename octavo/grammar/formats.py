"""String formats of JSON Schema as regexes that match only what every validator takes for that format.

Used by grammar/schema.py. Each text must match all regexes of its format as a whole. Stricter than the standards where
validators differ: no leap seconds, capital T and Z, a dot in the domain of an address, no IPv6 in addresses of hosts.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    regexes: tuple[str, ...]
    max_length: int | None = None


_LEAP = "(?:0[48]|[2468][048]|[13579][26])"
"""The last two digits of a leap year that does not end a century, or its first two where it does."""


def _date(year: str, leap_year: str) -> str:
    return (
        f"(?:{year}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
        f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{leap_year}-02-29)"
    )


_DATE = _date("(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})", f"(?:[0-9]{{2}}{_LEAP}|{_LEAP}00)")
# A time with an offset is a moment: at the ends of the calendar it would have no date in UTC.
_DATE_OF_MOMENT = _date("[1-8][0-9]{3}", f"(?:[1-8][0-9]{_LEAP}|(?:[2468][048]|[1357][26])00)")
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:0[0-9]|1[0-3]):[0-5][0-9])"
_DURATION = (
    "P(?:[0-9]{1,6}W|(?:[0-9]{1,6}Y(?:[0-9]{1,6}M(?:[0-9]{1,6}D)?)?|[0-9]{1,6}M(?:[0-9]{1,6}D)?|[0-9]{1,6}D)(?:T_)?|T_)"
).replace("T_", "T(?:[0-9]{1,6}H(?:[0-9]{1,6}M(?:[0-9]{1,6}S)?)?|[0-9]{1,6}M(?:[0-9]{1,6}S)?|[0-9]{1,6}S)")
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_H16 = "[0-9a-fA-F]{1,4}"
_IPV6 = "|".join(
    [f"(?:{_H16}:){{7}}{_H16}"]
    + [f"(?:(?:{_H16}:){{{n - 1}}}{_H16})?::(?:(?:{_H16}:){{0,{6 - n}}}{_H16})?" for n in range(1, 7)]
    + [f"::(?:(?:{_H16}:){{0,6}}{_H16})?", f"(?:{_H16}:){{6}}{_H16}::"]
)
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_NO_DOUBLE_HYPHEN = r"[a-zA-Z0-9.]+(?:-[a-zA-Z0-9.]+)*"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_ATOM = "[a-zA-Z0-9!#$%&'*+=?^_`{|}~\\-/]+"
_EMAIL = rf"{_ATOM}(?:\.{_ATOM})*@(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]{{0,61}}[a-zA-Z0-9])?\.){{1,8}}[a-zA-Z]{{2,63}}"
_PCHAR = "(?:[a-zA-Z0-9._~!$&'()*+,;=:@\\-]|%[0-9a-fA-F]{2})"
_REST = rf"(?:/{_PCHAR}*)*(?:\?(?:{_PCHAR}|[/?])*)?(?:#(?:{_PCHAR}|[/?])*)?"
_AUTHORITY = "(?:[a-zA-Z0-9._~-]+@)?[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]{1,5})?"
_URI = rf"[a-zA-Z][a-zA-Z0-9+.-]{{0,30}}:(?://{_AUTHORITY}{_REST}|/?{_PCHAR}+{_REST})"
_SEGMENT = _PCHAR.replace(":@", "@")
_URI_REFERENCE = rf"{_URI}|{_SEGMENT}+{_REST}|/{_PCHAR}+{_REST}|[?#]{_PCHAR}*|/?"
_POINTER = "(?:/(?:[^~/\\x{0}-\\x{1f}\\x{7f}]|~[01])*)*"

FORMATS: dict[str, Format] = {
    "date": Format((_DATE,)),
    "time": Format((_TIME,)),
    "date-time": Format((f"{_DATE_OF_MOMENT}T{_TIME}",)),
    "duration": Format((_DURATION,)),
    "email": Format((_EMAIL, "[^@]{1,64}@[^@]*"), 200),
    "idn-email": Format((_EMAIL, "[^@]{1,64}@[^@]*"), 200),
    "hostname": Format((_HOST, _NO_DOUBLE_HYPHEN), 253),
    "idn-hostname": Format((_HOST, _NO_DOUBLE_HYPHEN), 253),
    "ipv4": Format((_IPV4,)),
    "ipv6": Format((_IPV6,)),
    "uuid": Format(("[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}",)),
    "uri": Format((_URI,)),
    "iri": Format((_URI,)),
    "uri-reference": Format((_URI_REFERENCE,)),
    "iri-reference": Format((_URI_REFERENCE,)),
    "uri-template": Format((_URI,)),
    "json-pointer": Format((_POINTER,)),
    "relative-json-pointer": Format((f"(?:0|[1-9]{{1,4}})(?:#|{_POINTER})",)),
    "byte": Format(("(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",)),
}
