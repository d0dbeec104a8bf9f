"""Serves the API until stopped. SIGTERM or Ctrl-C lets requests in flight end; a second one does not wait."""

from __future__ import annotations

import asyncio
import signal
from contextlib import closing
from typing import Any

from fastapi import FastAPI

from flowledger.cli.flags import settings
from flowledger.cli.opening import addresses
from flowledger.server import application, bound, fastest_loop, serving
from flowledger.telemetry.logs import configure_logs


def server(**flags: Any) -> None:
    chosen = settings(**flags)
    configure_logs(chosen.log_format)
    with addresses(chosen) as where:
        app = application(chosen, where.api)
        with closing(bound(chosen)) as taken, asyncio.Runner(loop_factory=fastest_loop()) as runner:
            runner.run(_serve(app, taken))


async def _serve(app: FastAPI, taken: Any) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        stopping.set()
        # The next one ends it as it ends any process.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    async with serving(app, taken) as served:
        waiting = asyncio.create_task(stopping.wait())
        await asyncio.wait((served, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
