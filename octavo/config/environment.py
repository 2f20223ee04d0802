"""Names of the environment that begin with OCTAVO_: which are options, which are somebody else's, which are mistakes.

Kubernetes and container links put addresses of a service named "octavo" under such names (OCTAVO_PORT=tcp://10.0.0.7:80),
into every container beside it. Those are left alone, and named where an option has the same name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from octavo.config.suggest import did_you_mean
from octavo.env import NOT_OPTIONS

PREFIX = "OCTAVO_"
OF_COMMANDS = ("OCTAVO_CONFIG", "OCTAVO_ENDPOINT")
"""Options of the command line alone."""
_OWN_TESTS = "OCTAVO_TEST_"
_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S*")
_LINK_NAMES = re.compile(
    r"OCTAVO_NAME|OCTAVO_ENV_\w+"
    r"|OCTAVO(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)


def is_foreign(name: str, value: str) -> bool:
    """Whether a variable is the address of a service or container and no option's value."""
    if name.endswith("_PORT") and not name.endswith(("_TCP_PORT", "_UDP_PORT", "_SCTP_PORT", "_SERVICE_PORT")):
        return _ADDRESS.fullmatch(value.strip()) is not None
    return _LINK_NAMES.fullmatch(name) is not None


def notes(env: Mapping[str, str], options: Iterable[str]) -> list[str]:
    """Sentences about variables that do nothing, though they look as if they did. `options`: all names that do."""
    known = {*options, *NOT_OPTIONS, *OF_COMMANDS}
    found = []
    for name, value in sorted(env.items()):
        if not name.startswith(PREFIX) or name.startswith(_OWN_TESTS):
            continue
        if is_foreign(name, value):
            if name in known:
                found.append(
                    f"{name}={value} is left alone: it is the address of a Kubernetes Service or a container link that "
                    "is named octavo, and no option"
                )
        elif name not in known:
            # Without the prefix, which makes all of them alike.
            meant = did_you_mean(name.removeprefix(PREFIX), (each.removeprefix(PREFIX) for each in known))
            found.append(f"{name} is no option and does nothing" + meant.replace("mean ", f"mean {PREFIX}"))
    return found
