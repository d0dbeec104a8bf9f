"""That something changed: which execution, and in what way. What it is now is for whoever wants to know to fetch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from flowledger.errors import InvalidInput

MOST_TOPICS = 32


class ChangeKind(StrEnum):
    """READY: from here on nothing is missed. RESET: anything may have changed, so that all is to be fetched again."""

    READY = "ready"
    RESET = "reset"
    CREATED = "created"
    STARTED = "started"
    ENDED = "ended"
    TIMELINE = "timeline"
    LOGS = "logs"
    FLOWS = "flows"


@dataclass(frozen=True)
class Change:
    """`execution` None: it is about no single one."""

    kind: ChangeKind
    execution: UUID | None = None


@dataclass(frozen=True)
class Topics:
    """What somebody wants to be told of: `executions` (all that they may see), `execution:ID`, `flows`.

    The timeline and the logs are told of executions that are named.
    """

    named: frozenset[UUID] = frozenset()
    executions: bool = False
    flows: bool = False

    @classmethod
    def parse(cls, text: str) -> Topics:
        """Topics between commas. Raises InvalidInput."""
        words = [word.strip() for word in text.split(",") if word.strip()]
        if not 1 <= len(words) <= MOST_TOPICS:
            raise InvalidInput("topics", f"must be 1 to {MOST_TOPICS} topics, not {len(words)}", _REMEDY)
        named = frozenset(_named(word) for word in words if word not in ("executions", "flows"))
        return cls(named, executions="executions" in words, flows="flows" in words)

    def __str__(self) -> str:
        general = [word for word in ("executions", "flows") if getattr(self, word)]
        return ",".join([*general, *(f"execution:{one}" for one in sorted(self.named))])


_REMEDY = "Give executions, flows or execution:ID, separated by commas."


def _named(word: str) -> UUID:
    topic, _, id_ = word.partition(":")
    if topic == "execution":
        try:
            return UUID(id_)
        except ValueError:
            pass
    raise InvalidInput("topics", f"{word[:60]!r} is no topic", _REMEDY)


@dataclass(frozen=True)
class Snapshot:
    """Which transactions had been committed at one moment: all below `xmax` but those `under_way`.

    Numbers that are handed out before a commit become visible in another order than theirs. A reader who remembers the
    snapshot under which it read, and asks for what that one did not show, misses nothing and reads nothing twice.
    """

    xmax: int
    under_way: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Reads a `pg_snapshot`: `xmin:xmax:xip,xip`. Raises ValueError."""
        _, xmax, under_way = text.split(":")
        return cls(int(xmax), tuple(int(number) for number in under_way.split(",") if number))

    def __str__(self) -> str:
        xmin = min(self.under_way, default=self.xmax)
        return f"{xmin}:{self.xmax}:{','.join(map(str, self.under_way))}"

    def up_to(self, transaction: int) -> Snapshot:
        """What it shows below this transaction, which itself counts as under way."""
        below = (number for number in self.under_way if number < transaction)
        return Snapshot(transaction + 1, (*below, transaction))


@dataclass(frozen=True)
class Position:
    """How far somebody has been told: all that `snapshot` shows, and of the transaction `within` all up to a number.

    As text it is the id of the live stream's messages: opaque to clients. `flows` stands for how the flows were.
    """

    snapshot: Snapshot
    within: tuple[int, int] | None = None
    flows: str = ""

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """Reads what `str()` wrote; None for anything else, as of another version."""
        if len(text) > _LONGEST_POSITION:
            return None
        place, _, flows = text.partition(";")
        snapshot, _, within = place.partition("/")
        try:
            transaction, number = (int(part) for part in within.split(".")) if within else (0, 0)
            read = cls(Snapshot.parse(snapshot), (transaction, number) if within else None, flows)
        except ValueError:
            return None
        return read if read._is_sound() and str(read) == text else None

    def __str__(self) -> str:
        within = "" if self.within is None else f"/{self.within[0]}.{self.within[1]}"
        return f"{self.snapshot}{within}" + (f";{self.flows}" if self.flows else "")

    def _is_sound(self) -> bool:
        """Whether Postgres can read it."""
        under_way = self.snapshot.under_way
        numbers = (self.snapshot.xmax, *under_way, *(self.within or ()))
        return (
            all(0 < number < _MOST for number in numbers)
            and list(under_way) == sorted(set(under_way))
            and all(number < self.snapshot.xmax for number in under_way)
            and (not self.flows or (self.flows.isascii() and self.flows.isalnum()))
        )


_LONGEST_POSITION = 8192
_MOST = 2**62
