"""Along what costs are told. On its own, since a shell is offered these words before anything else is loaded."""

from __future__ import annotations

from enum import StrEnum


class Dimension(StrEnum):
    """Each holds the whole: every amount belongs to one flow, one user, one day."""

    FLOW = "flow"
    MODEL = "model"
    USER = "user"
    DAY = "day"
    MODE = "mode"
    MEETING = "meeting"
