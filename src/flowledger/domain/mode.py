"""How an execution came to be. On its own, since a shell is offered these words before anything else is loaded."""

from __future__ import annotations

from enum import StrEnum


class Mode(StrEnum):
    """How an execution came to be: by hand, by the clock, by an event."""

    MANUAL = "manual"
    SCHEDULED = "scheduled"
    TRIGGERED = "triggered"
