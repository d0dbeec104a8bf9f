"""Gathers the history of a run for the checker: from the ledger, the flows' own log, the workers' and the client's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from tests.chaos.client import Client
from tests.chaos.history import Answer, Bounds, Effect, History, Transition
from tests.chaos.stage import GRACE_SECONDS, LEASE_SECONDS, POLL_SECONDS, Stage
from tests.chaos.watch import Watch, since_boot

BOUNDS = Bounds(
    lease=timedelta(seconds=LEASE_SECONDS),
    grace=timedelta(seconds=GRACE_SECONDS),
    poll=timedelta(seconds=POLL_SECONDS),
    slack=timedelta(seconds=5 - POLL_SECONDS),
)


def history(stage: Stage, client: Client, watch: Watch) -> History:
    """Everything that is known, once nothing moves any more."""
    product = stage.product
    product.sql("select flowledger.fold_execution_counts()")
    rows = product.sql("select executions.*, md5(executions::text) as digest from crewai_flow_executions as executions")
    return History(
        bounds=BOUNDS,
        acknowledgements=tuple(client.acknowledged.values()),
        transitions=tuple(
            Transition(**row)
            for row in product.sql(
                "select seq, execution_id as execution, from_status, to_status, actor, at, fence, worker_id as worker "
                "from flowledger.transitions"
            )
        ),
        digests={row["id"]: row.pop("digest") for row in rows},
        rows={row["id"]: row for row in rows},
        leases={row["execution_id"]: row["fence"] for row in product.sql("select * from flowledger.leases")},
        execution_counts={
            row["id"]: row["execution_count"]
            for row in product.sql("select id, execution_count from crewai_flows where status = 'active'")
        },
        looks=tuple(watch.looks),
        effects=tuple(_effects(stage)),
        sightings=tuple(watch.sightings),
        answers=tuple(_answers(stage)),
        outages=tuple(watch.outages),
    )


def _effects(stage: Stage) -> Iterator[Effect]:
    offset = since_boot()
    epoch = datetime.fromtimestamp(0, UTC)
    for line in stage.effects.read_text().splitlines():
        execution, what, at = json.loads(line)
        yield Effect(UUID(execution), what, epoch + timedelta(seconds=at) + offset)


def _answers(stage: Stage) -> Iterator[Answer]:
    """A worker logs its claim and what its finish was answered."""
    for worker in stage.workers:
        fences: dict[tuple[Any, str], int] = {}
        for fact in worker.facts():
            if fact["event"] == "execution_claimed":
                fences[fact["log"], fact["execution"]] = fact["fence"]
            elif fact["event"] == "execution_ended":
                fence = fences[fact["log"], fact["execution"]]
                yield Answer(UUID(fact["execution"]), fence, fact["status"], fact["answer"])
