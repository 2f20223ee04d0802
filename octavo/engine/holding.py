"""Requests that were accepted and may not run for a while: those of clients that are behind with reading, and those
that may be what breaks engines, while another one is on trial (blame.py).

Owned by the scheduler. Invariant: a request that is held has neither row nor pages, and stands in no queue.
"""

from __future__ import annotations

from octavo.engine.blame import Blame
from octavo.engine.request import Request


class Holding:
    def __init__(self, blame: Blame) -> None:
        self.behind: frozenset[bytes] = frozenset()
        """Clients whose requests are held."""
        self.blame = blame
        self._held: dict[Request, None] = {}
        """In the order of their arrival."""

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, request: Request) -> bool:
        return request in self._held

    def admits(self, request: Request) -> bool:
        """It may run, and runs from now on; else it is held."""
        if request.client in self.behind or not self.blame.may_run(request.identity):
            self._held[request] = None
            return False
        self.blame.enter(request.identity, request)
        return True

    def hold(self, requests: list[Request]) -> None:
        self._held |= dict.fromkeys(requests)

    def take(self) -> list[Request]:
        """All of them, to be asked about again."""
        found, self._held = list(self._held), {}
        return found

    def heard(self, request: Request) -> bool:
        """It has had its first token. → whether another one may run now."""
        return self.blame.heard(request.identity, request)

    def leave(self, request: Request) -> bool:
        """It has ended. → whether another one may run now."""
        self._held.pop(request, None)
        return self.blame.leave(request.identity, request)
