"""For the negative control: `flowledger`, with workers that keep what they run although their lease is lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flowledger.cli import main
from flowledger.runner.limits import Limits
from flowledger.worker.worker import Worker

_order = Worker._order


def _without_watchdog(*arguments: Any) -> Any:
    return replace(_order(*arguments), lease_seconds=3600.0)


def _go_on(_limits: Limits) -> None:
    """As if nothing had been lost."""


if __name__ == "__main__":
    setattr(Worker, "_order", _without_watchdog)  # noqa: B010
    setattr(Limits, "lose", _go_on)  # noqa: B010
    main()
