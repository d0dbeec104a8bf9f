"""Ends tasks that would go on by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

_ASK_AGAIN_SECONDS = 0.5


async def ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels the tasks and waits until each is done; what they raise is left to whoever asks them.

    It asks again until they are: in Python 3.11 `asyncio.wait_for`, on which the driver waits, loses a cancellation
    that arrives together with its result.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_ASK_AGAIN_SECONDS)
