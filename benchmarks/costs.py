"""How soon costs are told behind a month of a million executions: along each dimension, by day and flow, to one user.

The other side of the main figure is the same question put to the rows themselves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from benchmarks.figures import Figure, p95, spread
from benchmarks.stage import Stage
from flowledger.database.session import Claims, Connection, Database
from flowledger.domain.dimension import Dimension
from flowledger.ledger import budgets, failures, spending
from flowledger.ledger.spending import Days

_EXECUTIONS = 1_000_000
_UNFOLDED = 5_000
_ROUNDS = 40
_MOST_MS = 50
_USER = UUID(int=500)
_OPERATOR = Claims.of_operator()

_FILL = (
    """
    insert into crewai_flows (id, flow_key, flow_name, flow_definition, status)
    select format('00000000-0000-0000-0001-%%s', lpad(n::text, 12, '0'))::uuid, 'flow_' || n, 'Flow', '{}', 'active'
    from generate_series(0, 19) as n
    """,
    "alter table crewai_flow_executions disable trigger user",
    """
    insert into crewai_flow_executions (
      id, flow_id, execution_key, executed_by, execution_mode, board_meeting_id, status, started_at, completed_at,
      duration_ms, token_count, cost_usd, error_type
    )
    select format('00000000-0000-0000-0002-%%s', lpad(n::text, 12, '0'))::uuid,
           format('00000000-0000-0000-0001-%%s', lpad((n %% 20)::text, 12, '0'))::uuid, 'KEY-' || n,
           -- Hexadecimal, as UUID(int=...) counts.
           lpad(to_hex(n::bigint * 7919 %% 1000), 32, '0')::uuid,
           (array['manual', 'scheduled', 'triggered'])[n %% 3 + 1],
           case when n %% 10 = 0 then lpad(to_hex(n %% 300), 32, '0')::uuid end,
           case when n %% 20 = 3 then 'failed' else 'completed' end, at, at + interval '9 s', 9000, 1100, 0.0071,
           case when n %% 20 = 3 then 'ValueError' end
    from (
      select n, now() - n * interval '30 days' / %(executions)s as at from generate_series(1, %(executions)s) as n
    ) as born
    """,
    "alter table crewai_flow_executions enable trigger user",
    """
    insert into flowledger.usage (
      execution_id, number, call_id, status, model, provider, started_at, input_tokens, cached_input_tokens,
      cache_write_tokens, output_tokens, reasoning_tokens, price, cost_usd
    )
    select id, 1, 'call', 'completed', 'model-' || row_number() over () %% 5, 'openai', started_at, 1000, 200, 0, 100,
           10, '{}', 0.00712345678
    from crewai_flow_executions
    """,
    """
    insert into flowledger.failures (execution_id, fingerprint, failed_at, flow_id, error_type, token_count, cost_usd)
    select id, 'fingerprint-' || row_number() over () %% 40, completed_at, flow_id, error_type, token_count,
           0.00712345678
    from crewai_flow_executions
    where status = 'failed'
    """,
    # As the triggers would have appended them, but for the ends in rows of their own.
    """
    insert into flowledger.unfolded_spending (
      day, flow_id, executed_by, execution_mode, board_meeting_id, model, executions, failed, calls, input_tokens,
      cached_input_tokens, output_tokens, reasoning_tokens, cost_usd
    )
    select (executions.completed_at at time zone 'UTC')::date, flow_id, executed_by, execution_mode, board_meeting_id,
           usage.model, count(*), count(*) filter (where executions.status = 'failed'), count(*), sum(input_tokens),
           sum(cached_input_tokens), sum(output_tokens), sum(reasoning_tokens), sum(usage.cost_usd)
    from crewai_flow_executions as executions
    join flowledger.usage as usage on usage.execution_id = executions.id
    group by 1, 2, 3, 4, 5, 6
    """,
)
_LEFT_UNFOLDED = """
    insert into flowledger.unfolded_spending (day, flow_id, executed_by, execution_mode, model, calls, cost_usd)
    select (now() at time zone 'UTC')::date,
           format('00000000-0000-0000-0001-%%s', lpad((n %% 20)::text, 12, '0'))::uuid,
           lpad(to_hex(n %% 1000), 32, '0')::uuid, 'manual', 'model-1', 1, 0.001
    from generate_series(1, %(unfolded)s) as n
"""

Question = Callable[[Connection, Claims], Awaitable[Any]]


def told(stage: Stage) -> list[Figure]:
    """Each question in turns with the others; every one is a whole transaction, as commands ask it."""
    postgres = stage.server("costs")
    _fill(postgres.url("flowledger"))
    return asyncio.run(_measure(postgres.url("flowledger_api")))


def _fill(url: str) -> None:
    values = {"executions": _EXECUTIONS, "unfolded": _UNFOLDED}
    with psycopg.connect(url, autocommit=True) as owner:
        for statement in _FILL:
            owner.execute(statement.encode(), values)
        while _folded(owner):
            pass
        # What the bulk left behind is not what a ledger that folds every few seconds has to read over.
        owner.execute("vacuum flowledger.unfolded_spending")
        owner.execute(_LEFT_UNFOLDED.encode(), values)
        owner.execute("select flowledger.set_budget('everything', null, null, 'month', 1000000, null, 'stop')")
        owner.execute("select flowledger.set_budget('user', null, null, 'month', 1000, null, 'stop')")
        owner.execute("vacuum analyze")


def _folded(owner: psycopg.Connection[Any]) -> int:
    row = owner.execute("select flowledger.fold_spending(50000)").fetchone()
    assert row is not None
    return int(row[0])


async def _measure(url: str) -> list[Figure]:
    days = Days(first=datetime.now(UTC).date() - timedelta(days=30))
    me = Claims(_USER)
    questions: dict[str, tuple[Claims, Question]] = {
        "cost by day and flow": (_OPERATOR, lambda session, claims: spending.by_day_and_flow(session, claims, days)),
        **{f"costs --by {dimension}": (_OPERATOR, _by(dimension, days)) for dimension in Dimension},
        "costs --by flow of one user, from rows": (me, _by(Dimension.FLOW, days)),
        "errors": (_OPERATOR, lambda session, claims: failures.groups(session, claims)),
        "budgets list": (_OPERATOR, lambda session, _: budgets.list_(session)),
    }
    times: dict[str, list[float]] = {name: [] for name in questions}
    async with Database(url, most_connections=1) as database:
        for turn in range(_ROUNDS + 1):
            for name, (claims, ask) in questions.items():
                took = await _took(database, claims, ask)
                if turn:
                    times[name].append(took)
        from_rows = await _took(database, _OPERATOR, _over_rows)
    return [_figure(name, of, from_rows if name == "cost by day and flow" else None) for name, of in times.items()]


def _by(dimension: Dimension, days: Days) -> Question:
    return lambda session, claims: spending.by(session, claims, dimension, days)


async def _over_rows(session: Connection, _: Claims) -> None:
    """What the rollup spares: the sum over the rows."""
    rows = await session.execute(
        "select (usage.started_at at time zone 'UTC')::date, flow_id, sum(usage.cost_usd) "
        "from flowledger.usage as usage "
        "join flowledger.every_execution as executions on executions.id = usage.execution_id "
        "group by 1, 2"
    )
    assert len(await rows.fetchall()) >= 600


async def _took(database: Database, claims: Claims, ask: Question) -> float:
    begun = time.monotonic()
    async with database.session(claims) as session:
        assert await ask(session, claims) is not False
    return (time.monotonic() - begun) * 1000


def _figure(name: str, times: list[float], from_rows: float | None) -> Figure:
    promised = name == "cost by day and flow"
    return Figure(
        f"{name}, 30 days of {_EXECUTIONS:,} executions, p95",
        f"{p95(times):.1f} ms",
        spread(times, "ms", 1),
        "" if from_rows is None else f"{from_rows:,.0f} ms from the rows",
        "" if from_rows is None else f"{p95(times) / from_rows:.3f}",
        f"<= {_MOST_MS} ms" if promised else "",
        p95(times) <= _MOST_MS if promised else None,
    )
