"""The change feed of one process: it looks for what is new once for all who watch, and wakes those whom it may concern.

What a stream then tells is read in Postgres under its own claims, from its own position, and in the same way whether it
has just been woken or comes back after a day. So nothing is kept for it: however slowly it is read, a stream holds a
position and at most one page. Who is woken is a hint, and errs towards waking.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import structlog

from flowledger.database.listen import listen
from flowledger.database.session import Claims, Database
from flowledger.domain.change import Change, ChangeKind, Position, Snapshot, Topics
from flowledger.errors import ExecutionNotFound, FlowledgerError, TooManyStreams
from flowledger.ledger import changes, executions
from flowledger.ledger.changes import Heads, Stir

_log = structlog.get_logger("flowledger.feed")

MOST_STREAMS = 16
"""Streams that one identity may have open at one server."""
PAGE = 500
"""Changes that are read at one time."""
LOOK_SECONDS = 0.25
"""Between two looks while there is news: nobody is told of the same more often."""
POLL_SECONDS = 5.0
"""Between two looks when no notification comes."""
LONGEST_SECONDS = 600.0
"""A stream ends then and is resumed with a token that is checked anew."""
FURTHEST = 1_000_000
"""Transactions that may lie behind a position. Beyond, it is cheaper to fetch all again than to tell what changed."""

_CHANNEL = "flowledger_feed"
_LOOKED_AT = 5_000
_READS_AT_ONCE = 3
_OPERATOR = Claims.of_operator()


@dataclass(frozen=True)
class Page:
    """What is to be told next, and the position once it has been. `is_last`: there is no more for now."""

    position: Position
    changes: tuple[Change, ...]
    is_last: bool = True


@dataclass(frozen=True)
class _Found:
    position: Position
    changes: tuple[Change, ...]
    heads: dict[UUID, Heads]
    is_last: bool


class Feed:
    """Use it as `async with Feed(...).running()`. `listen_conninfo` must not lead through a pooler of transactions."""

    def __init__(self, database: Database, listen_conninfo: str, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._database = database
        self._listen_conninfo = listen_conninfo
        self._poll_seconds = poll_seconds
        self._id = uuid4()
        self._streams: set[Stream] = set()
        self._open: Counter[Claims] = Counter()
        self._somebody = asyncio.Event()
        self._news = asyncio.Event()
        self._asked_until = 0.0
        self._seen: Snapshot | None = None
        self._heads: dict[UUID, Heads] = {}
        self._flows = ""
        self._looks = 0
        self._is_ending = False
        self._reads: dict[Any, asyncio.Task[_Found]] = {}
        self._turns = asyncio.Semaphore(_READS_AT_ONCE)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Feed]:
        """Listens and looks until the block is left."""
        tasks = [
            asyncio.create_task(listen(self._listen_conninfo, [_CHANNEL], lambda _: self._news.set())),
            asyncio.create_task(self._look_for_ever()),
        ]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with suppress(FlowledgerError):
                await self._wait_no_more()

    @property
    def streams(self) -> int:
        """How many are open."""
        return len(self._streams)

    async def open(self, claims: Claims, topics: Topics, after: str | None) -> Stream:
        """A stream that tells what changes from now on, or what changed after the id `after` of an earlier message.

        Raises TooManyStreams, and ExecutionNotFound if a named execution is not there or not the caller's to see.
        """
        if self._open[claims] >= MOST_STREAMS:
            raise TooManyStreams(MOST_STREAMS)
        # Watched before its first read, so that what comes in between wakes it.
        stream = Stream(self, claims, topics)
        self._streams.add(stream)
        self._open[claims] += 1
        self._somebody.set()
        try:
            await stream.begin(after)
        except BaseException:
            self.close(stream)
            raise
        return stream

    def close(self, stream: Stream) -> None:
        """Forgets the stream; may be repeated."""
        if stream not in self._streams:
            return
        self._streams.remove(stream)
        self._open[stream.claims] -= 1
        if not self._open[stream.claims]:
            del self._open[stream.claims]
        if not self._streams:
            self._somebody.clear()

    def end(self) -> None:
        """Ends every stream, and each that is opened from now on once it has begun: its client resumes elsewhere."""
        self._is_ending = True
        for stream in self._streams:
            stream.end()

    @property
    def is_ending(self) -> bool:
        return self._is_ending

    # -- Reading, under the claims of the stream ----------------------------------------------------------------------

    async def beginning(self, claims: Claims, topics: Topics) -> _Found:
        """How everything is now. Raises ExecutionNotFound."""
        async with self._turns, self._database.session(claims) as session:
            position = Position(await changes.now(session))
            for named in topics.named:
                # Found by a key that reads like an id, it would be another one.
                if (await executions.identify(session, claims, str(named))).id != named:
                    raise ExecutionNotFound(str(named))
            heads = await changes.heads(session, topics.named) if topics.named else {}
            if topics.flows:
                position = replace(position, flows=await changes.flows(session))
            return _Found(position, (), heads, is_last=True)

    async def read(self, claims: Claims, topics: Topics, position: Position) -> _Found:
        """What the position has not been told. Streams that were woken for the same are answered by one reading."""
        # One that began before the look which woke a stream may not see what that look saw.
        key = (claims, topics, position, self._looks)
        if key not in self._reads:
            reading = self._reads[key] = asyncio.create_task(self._read(claims, topics, position))
            reading.add_done_callback(lambda done: self._done(key, done))
        return await asyncio.shield(self._reads[key])

    def _done(self, key: Any, reading: asyncio.Task[_Found]) -> None:
        del self._reads[key]
        if not reading.cancelled():
            # Looked at, lest asyncio complain when all who asked have left.
            reading.exception()

    async def _read(self, claims: Claims, topics: Topics, position: Position) -> _Found:
        async with self._turns, self._database.session(claims) as session:
            told: list[Change] = []
            before = position
            if topics.executions or topics.named:
                among = None if topics.executions else topics.named
                position, told = await changes.since(session, position, among, PAGE)
            if topics.flows and (flows := await changes.flows(session)) != before.flows:
                position = replace(position, flows=flows)
                told.append(Change(ChangeKind.FLOWS))
            heads = await changes.heads(session, topics.named) if topics.named else {}
            return _Found(position, tuple(told), heads, is_last=position.within is None)

    # -- Looking, once for all ----------------------------------------------------------------------------------------

    async def _look_for_ever(self) -> None:
        pause = LOOK_SECONDS
        while True:
            await self._somebody.wait()
            try:
                if await self._look() or await self._rest(pause):
                    pause = LOOK_SECONDS
                    await asyncio.sleep(LOOK_SECONDS)
                else:
                    # Who was in the middle of a change when we asked to be told may not have known, so pauses grow.
                    pause = min(pause * 2, self._poll_seconds)
                if not self._streams:
                    await self._forget()
            except Exception as trouble:  # Whatever it is, streams wait to be woken.
                _log.warning("feed_cannot_look", exc_info=trouble)
                await asyncio.sleep(self._poll_seconds)

    async def _forget(self) -> None:
        """Nobody watches."""
        self._seen, self._heads = None, {}
        await self._wait_no_more()

    async def _rest(self, pause: float) -> bool:
        """Waits for news. True if there was some before the waiting began."""
        self._news.clear()
        await self._ask_to_be_told()
        if await self._look():
            await self._wait_no_more()
            return True
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._news.wait()
            await self._wait_no_more()
        return False

    async def _ask_to_be_told(self) -> None:
        now = asyncio.get_running_loop().time()
        if now + self._poll_seconds < self._asked_until:
            return
        patience = 4 * self._poll_seconds
        async with self._database.session(_OPERATOR) as session:
            await changes.watch(session, self._id, timedelta(seconds=patience))
        self._asked_until = now + patience

    async def _wait_no_more(self) -> None:
        if self._asked_until:
            self._asked_until = 0.0
            async with self._database.session(_OPERATOR) as session:
                await changes.stop_watching(session, self._id)

    async def _look(self) -> bool:
        """Wakes the streams that what is new may concern; moves on the others. True if there was anything new."""
        streams = list(self._streams)
        named = frozenset[UUID]().union(*(stream.topics.named for stream in streams))
        async with self._database.session(_OPERATOR) as session:
            if self._seen is None:
                stir = Stir(await changes.now(session), None, has_changes=bool(streams))
            else:
                stir = await changes.stir(session, self._seen, _LOOKED_AT)
            heads = await changes.heads(session, named) if named else {}
            flows = await changes.flows(session) if any(stream.topics.flows for stream in streams) else self._flows
        self._looks += 1
        moved = {one for one, head in heads.items() if head != self._heads.get(one)}
        news = _News(stir, moved, flows_changed=flows != self._flows)
        self._seen, self._heads, self._flows = stir.snapshot, heads, flows
        for stream in streams:
            stream.hear(news)
        return stir.has_changes or bool(moved) or news.flows_changed


@dataclass(frozen=True)
class _News:
    stir: Stir
    moved: set[UUID]
    flows_changed: bool

    def may_concern(self, claims: Claims, topics: Topics) -> bool:
        if self.flows_changed and topics.flows:
            return True
        if not topics.named.isdisjoint(self.moved):
            return True
        if not self.stir.has_changes or not (topics.executions or topics.named):
            return False
        return claims.is_operator or self.stir.users is None or claims.user in self.stir.users


class Stream:
    """What one client is told. `position` is how far it has been told: the id of its next heartbeat."""

    def __init__(self, feed: Feed, claims: Claims, topics: Topics) -> None:
        self._feed = feed
        self.claims = claims
        self.topics = topics
        self.position: Position | None = None
        self._heads: dict[UUID, Heads] = {}
        self._first: Change = Change(ChangeKind.READY)
        self._woken = asyncio.Event()
        self._is_settled = False

    async def begin(self, after: str | None) -> None:
        """Finds the position to go on from. One that is not known any more makes the first message a RESET."""
        found = await self._feed.beginning(self.claims, self.topics)
        earlier = None if after is None else Position.parse(after)
        if after is not None and (earlier is None or not _is_in_reach(earlier, found.position)):
            self._first, earlier = Change(ChangeKind.RESET), None
        self.position = earlier or found.position
        # Who comes back does not say how far it had read the timelines, so these count as news.
        self._heads = {} if earlier else found.heads

    async def pages(self) -> AsyncIterator[Page]:
        """What is to be told, for as long as a stream lasts. A page counts as told when the next one is asked for."""
        ends_at = asyncio.get_running_loop().time() + LONGEST_SECONDS
        assert self.position is not None
        yield Page(self.position, (self._first,))
        with suppress(TimeoutError):
            while not self._feed.is_ending:
                page = await self._next()
                if page.changes:
                    yield page
                self.position = page.position
                if page.is_last:
                    await self._settle(ends_at)

    def close(self) -> None:
        self._feed.close(self)

    def end(self) -> None:
        """Its pages end with the one that is being told."""
        self._woken.set()

    async def _next(self) -> Page:
        self._woken.clear()
        assert self.position is not None
        found = await self._feed.read(self.claims, self.topics, self.position)
        moved = [
            Change(kind, one)
            for one, head in sorted(found.heads.items())
            for kind in (ChangeKind.TIMELINE, ChangeKind.LOGS)
            if getattr(head, kind) > getattr(self._heads.get(one, Heads()), kind)
        ]
        self._heads = found.heads
        # What happened inside comes first: whoever hears that an execution has ended knows of all of it.
        return Page(found.position, (*moved, *found.changes), found.is_last)

    async def _settle(self, ends_at: float) -> None:
        """Waits to be woken. Raises TimeoutError when the stream's time is over."""
        self._is_settled = True
        async with asyncio.timeout_at(ends_at):
            await self._woken.wait()
        self._is_settled = False

    def hear(self, news: _News) -> None:
        """Wakes it, if the news may concern it; else it has been told everything up to the news."""
        if news.may_concern(self.claims, self.topics):
            self._woken.set()
        elif self._is_settled and not self._woken.is_set():
            self._move_on(news.stir.snapshot)

    def _move_on(self, snapshot: Snapshot) -> None:
        assert self.position is not None
        if snapshot.xmax >= self.position.snapshot.xmax:
            self.position = replace(self.position, snapshot=snapshot, within=None)


def _is_in_reach(earlier: Position, now: Position) -> bool:
    """A position ahead of now comes from before the database was restored."""
    return 0 <= now.snapshot.xmax - earlier.snapshot.xmax <= FURTHEST
