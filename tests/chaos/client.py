"""A user who starts executions at a steady pace, cancels some of them, and notes what the database acknowledged."""

from __future__ import annotations

import heapq
import itertools
import json
import random
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb

from tests.acceptance.product import Product
from tests.chaos.history import Acknowledgement

_INSERT = """
insert into public.crewai_flow_executions (flow_id, execution_key, input_state, executed_by, metadata)
select id, %(execution_key)s, %(input_state)s, %(executed_by)s, %(metadata)s
from public.crewai_flows where flow_key = %(flow_key)s and status = 'active'
returning id, flow_id
"""


@dataclass(frozen=True)
class Wish:
    """One execution to start. `cancel_after` seconds, unless None, its owner wants it ended."""

    flow_key: str
    inputs: dict[str, Any]
    timeout_seconds: float | None = None
    cancel_after: float | None = None


def wishes(rng: random.Random) -> Any:
    """Most are brief; every twelfth talks to a model, every eighth takes its time and is often cut short."""
    for number in itertools.count():
        if number % 12 == 3:
            yield Wish("talk", {"number": number})
        elif number % 8 == 5:
            seconds = round(rng.uniform(0.3, 2.5), 2)
            fate = rng.randrange(4)
            yield Wish(
                "long",
                {"number": number, "seconds": seconds},
                timeout_seconds=round(rng.uniform(0.3, 1.2), 2) if fate == 0 else None,
                cancel_after=rng.uniform(0, 1.5) if fate == 1 else None,
            )
        else:
            yield Wish("brief", {"number": number}, cancel_after=0.0 if rng.random() < 0.02 else None)


@dataclass
class Client:
    """`acknowledged` grows while it works; `failures` counts what it was refused, by error."""

    product: Product
    rng: random.Random
    per_second: float
    acknowledged: dict[UUID, Acknowledgement] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    by_flow: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    _to_cancel: list[tuple[float, UUID]] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        self._stopped.set()

    def insert(self) -> None:
        """Until it is stopped. What the database cannot take at the moment is left out, not repeated."""
        begun = due = time.monotonic()
        session = _Session(self.product)
        for wish in wishes(self.rng):
            due = max(due + 1 / self.per_second, time.monotonic() - 1)
            if self._stopped.wait(max(0.0, due - time.monotonic())):
                break
            try:
                self._start(session, wish)
            except psycopg.Error as trouble:
                self._failed(trouble, session)
        self.seconds = time.monotonic() - begun
        session.close()

    def cancel(self) -> None:
        """Carries out the wishes to end what was started."""
        session = _Session(self.product)
        while not self._stopped.wait(0.02):
            while self._to_cancel and self._to_cancel[0][0] <= time.monotonic():
                _, execution = heapq.heappop(self._to_cancel)
                try:
                    answer = session.ask("select flowledger.cancel(%s, 'chaos') as answer", (execution,))["answer"]
                except psycopg.Error as trouble:
                    self._failed(trouble, session)
                else:
                    if answer == "cancelled":
                        known = self.acknowledged[execution]
                        self.acknowledged[execution] = replace(known, cancelled=True)
        session.close()

    def _start(self, session: _Session, wish: Wish) -> None:
        identity = {
            "execution_key": f"{wish.flow_key}-{uuid4()}",
            "executed_by": self.product.user,
            "input_state": wish.inputs,
        }
        metadata = {"timeout_seconds": wish.timeout_seconds} if wish.timeout_seconds else None
        given = {"flow_key": wish.flow_key, "metadata": Jsonb(metadata) if metadata else None}
        row = session.ask(_INSERT, {**identity, **given, "input_state": Jsonb(wish.inputs)})
        # From here on the database has answered: the row may never be lost.
        self.acknowledged[row["id"]] = Acknowledgement(row["id"], {**identity, **row, "execution_mode": "manual"})
        self.by_flow[wish.flow_key] += 1
        if wish.cancel_after is not None:
            heapq.heappush(self._to_cancel, (time.monotonic() + wish.cancel_after, row["id"]))

    def _failed(self, trouble: psycopg.Error, session: _Session) -> None:
        self.failures[type(trouble).__name__] += 1
        if isinstance(trouble, psycopg.OperationalError | psycopg.InterfaceError):
            session.close()
            self._stopped.wait(0.1)


class _Session:
    """A connection as PostgREST opens one for a signed-in user, made again after each loss."""

    def __init__(self, product: Product) -> None:
        self._product = product
        self._connection: psycopg.Connection[DictRow] | None = None

    def ask(self, text: str, values: Any) -> dict[str, Any]:
        """One row of one statement, which is committed when this returns."""
        connection = self._connection = self._connection or self._connect()
        row = connection.execute(text.encode(), values).fetchone()
        assert row is not None
        return row

    def close(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
        self._connection = None

    def _connect(self) -> psycopg.Connection[DictRow]:
        url = self._product.postgres.url("flowledger_api")
        connection = psycopg.connect(url, autocommit=True, row_factory=dict_row, connect_timeout=5)
        user = str(self._product.user)
        connection.execute("set role authenticated; set statement_timeout = '10s'")
        connection.execute(
            "select set_config('request.jwt.claim.sub', %s, false), set_config('request.jwt.claims', %s, false)",
            (user, json.dumps({"sub": user, "role": "authenticated"})),
        )
        return connection
