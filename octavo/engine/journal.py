"""The engine's log lines about single requests, each with the id that the HTTP server gave it.

Called by engine/scheduler.py and planner.py. What goes well is for debugging; what a request fails of is always said.
"""

from __future__ import annotations

import logging

from octavo import log
from octavo.engine.request import Request
from octavo.wire.messages import Add, Failed

logger = logging.getLogger(__name__)


def refused(add: Add, failed: Failed) -> None:
    logger.info("refused: %s", failed.message, extra=log.about(add.request_id, error=failed.code))


def taken(request: Request) -> None:
    if logger.isEnabledFor(logging.DEBUG):
        fields = {"prompt_tokens": request.num_prompt, "output_tokens": request.num_output}
        resumed = f", goes on after {request.num_output}" if request.num_output else ""
        about = log.about(request.add.request_id, sequence=request.id, **fields)
        logger.debug("taken in: %d prompt tokens%s", request.num_prompt, resumed, extra=about)


def preempted(request: Request) -> None:
    _event(request, "preempted: its pages are needed")


def aborted(request: Request) -> None:
    _event(request, "aborted")


def finished(request: Request, reason: str) -> None:
    _event(request, reason)


def failed(request: Request, why: str) -> None:
    about = log.about(request.add.request_id, sequence=request.id, output_tokens=request.num_output)
    logger.error("failed: %s", why, extra=about)


def _event(request: Request, what: str) -> None:
    if logger.isEnabledFor(logging.DEBUG):
        about = log.about(request.add.request_id, sequence=request.id, output_tokens=request.num_output)
        logger.debug("%s, with %d output tokens", what, request.num_output, extra=about)
