"""Tasks that are told to end do end."""

from __future__ import annotations

import asyncio

import pytest

from flowledger.worker.ending import ended


async def _loses_cancellations(count: int) -> None:
    """As `asyncio.wait_for` of Python 3.11 does when a result arrives together with a cancellation."""
    for _ in range(count):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue
    await asyncio.Event().wait()


async def test_a_task_that_loses_a_cancellation_ends_all_the_same():
    task = asyncio.create_task(_loses_cancellations(1))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await ended([task])
    assert task.cancelled()


async def test_one_cancellation_is_not_enough_for_such_a_task():
    task = asyncio.create_task(_loses_cancellations(1))
    await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=0.1)
    assert not done
    await ended([task])


async def test_what_a_task_raised_is_left_to_whoever_asks_it():
    async def fails() -> None:
        raise ValueError("why")

    task = asyncio.create_task(fails())
    await asyncio.wait([task])
    await ended([task])
    with pytest.raises(ValueError, match="why"):
        task.result()


async def test_no_tasks_are_ended_at_once():
    await ended([])
