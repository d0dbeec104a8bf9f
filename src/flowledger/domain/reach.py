"""What happens at a limit. On its own, since a shell is offered these words before anything else is loaded."""

from __future__ import annotations

from enum import StrEnum


class OnReach(StrEnum):
    """STOP refuses the call that would pass the limit. WARN lets it through and says so."""

    STOP = "stop"
    WARN = "warn"
