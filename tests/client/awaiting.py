"""The asynchronous client, called as the other one is: each claim is made of both."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager
from typing import Any


class Awaiting:
    """Stands for an object and awaits what its methods answer with."""

    def __init__(self, real: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._real = real
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if inspect.ismethod(value):
            return lambda *given, **named: self._answer(value(*given, **named))
        return Awaiting(value, self._loop) if type(value).__module__.startswith("flowledger.client.a") else value

    def __repr__(self) -> str:
        return repr(self._real)

    def _answer(self, value: Any) -> Any:
        if inspect.iscoroutine(value):
            return asyncio.run_coroutine_threadsafe(value, self._loop).result(60)
        return self._each(value) if inspect.isasyncgen(value) else value

    def _each(self, values: AsyncGenerator[Any]) -> Generator[Any]:
        try:
            while True:
                try:
                    yield self._answer(_next(values))
                except StopAsyncIteration:
                    return
        finally:
            self._answer(values.aclose())


async def _next(values: AsyncGenerator[Any]) -> Any:
    return await anext(values)


@contextmanager
def looping() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop of its own thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
