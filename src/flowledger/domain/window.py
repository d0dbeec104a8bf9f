"""The words of windows: what is limited, and for how long. On their own, since a shell is offered them before anything
else is loaded.
"""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    """Whose spending a window limits. USER is one user, or each of them."""

    EVERYTHING = "everything"
    FLOW = "flow"
    USER = "user"


class Period(StrEnum):
    """Days and months are UTC's."""

    DAY = "day"
    MONTH = "month"
