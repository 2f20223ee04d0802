"""A worker in a process of its own: does what comes on the socket that is its standard input, until that ends."""

from __future__ import annotations

import os
import socket

import msgspec

from octavo.executor.inline import InlineExecutor
from octavo.executor.messages import Answer, Failure, Order, Start
from octavo.modelfiles.files import ModelFiles
from octavo.processes import frames
from octavo.processes.lifeline import die_with_parent
from octavo.wire.plan import Result


def main() -> None:
    # Nothing that is printed, or read, may meet the socket.
    connection = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    decode = msgspec.msgpack.Decoder(Order).decode
    try:
        first = decode(frames.receive(connection)).start
        assert first is not None, "a worker is started before it is asked for anything"
        die_with_parent(first.parent)
        executor = InlineExecutor(first.resolved, ModelFiles.at(first.address, first.name), first.depth, first.rank)
        try:
            if _answer(connection, _started(executor, first)):
                while True:
                    _serve(executor, connection, decode(frames.receive(connection)))
        finally:
            executor.shutdown()
    except (EOFError, ConnectionError):
        pass


def _started(executor: InlineExecutor, start: Start) -> Answer:
    try:
        return Answer(info=executor.start())
    except Exception as error:
        return Answer(failure=Failure.of(error))


def _answer(connection: socket.socket, answer: Answer) -> bool:
    """Whether it is good news."""
    frames.send(connection, msgspec.msgpack.encode(answer))
    return answer.failure is None


def _serve(executor: InlineExecutor, connection: socket.socket, order: Order) -> None:
    if order.plan is not None:
        executor.submit(order.plan)
    elif order.masks is not None:
        executor.masks(order.masks)
    else:
        _answer(connection, _collected(executor))


def _collected(executor: InlineExecutor) -> Answer:
    try:
        result: Result = executor.collect()
        return Answer(result=result)
    except Exception as error:
        return Answer(failure=Failure.of(error))
