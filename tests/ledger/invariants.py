"""What holds of the ledger after every single step, each a query for what breaks it.

The names carry the numbers of the law's list of invariants. What a single look cannot see (a row that changes after its
end, a fence that shrinks) is left to whoever looks more than once; processes and effects are left to `tests/chaos`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

import psycopg

_BROKEN = {
    "2 the first transition is the birth of a pending row": """
        select executions.id, coalesce(first.from_status, 'birth') || ' -> ' || coalesce(first.to_status, 'nothing')
        from crewai_flow_executions as executions
        left join lateral (
          select from_status, to_status from flowledger.transitions
          where execution_id = executions.id order by seq limit 1
        ) as first on true
        where first.from_status is not null or first.to_status is distinct from 'pending'
    """,
    "3 the chain has no gap and ends at the row's status": """
        select id, before || ' -> ' || from_status || ' -> ' || to_status || ', row ' || status
        from (
          select executions.id, executions.status, steps.from_status, steps.to_status,
                 lag(steps.to_status) over chain as before,
                 lead(steps.to_status) over chain as after
          from crewai_flow_executions as executions
          join flowledger.transitions as steps on steps.execution_id = executions.id
          window chain as (partition by executions.id order by steps.seq)
        ) as steps
        where before is distinct from from_status or (after is null and to_status is distinct from status)
    """,
    "3 every edge is the law's": """
        select execution_id, from_status || ' -> ' || to_status
        from flowledger.transitions
        where from_status is not null and (from_status, to_status) not in (
          ('pending', 'running'), ('pending', 'failed'), ('pending', 'cancelled'), ('pending', 'timeout'),
          ('running', 'completed'), ('running', 'failed'), ('running', 'cancelled'), ('running', 'timeout'))
    """,
    "4 an execution runs at most once": """
        select execution_id, count(*)::text from flowledger.transitions
        where to_status = 'running' group by execution_id having count(*) > 1
    """,
    "5 an execution ends at most once": """
        select execution_id, string_agg(to_status, ', ') from flowledger.transitions
        where to_status in ('completed', 'failed', 'cancelled', 'timeout') group by execution_id having count(*) > 1
    """,
    "7 what runs has a lease": """
        select executions.id, 'no lease'
        from crewai_flow_executions as executions
        where executions.status = 'running' and executions.id <> all (%(bare)s)
          and not exists (select from flowledger.leases where execution_id = executions.id)
    """,
    "8 what has a lease runs": """
        select executions.id, executions.status
        from flowledger.leases
        join crewai_flow_executions as executions on executions.id = leases.execution_id
        where executions.status is distinct from 'running'
    """,
    "what waits is queued, and nothing else is": """
        select executions.id, executions.status
        from crewai_flow_executions as executions
        left join flowledger.queue on queue.execution_id = executions.id
        where (executions.status is not distinct from 'pending') <> (queue.execution_id is not null)
    """,
    "10 no two claims have one fence, and an end carries its claim's": """
        select execution_id, 'fence ' || coalesce(fence::text, 'none')
        from (
          select steps.*, count(*) filter (where to_status = 'running') over (partition by fence) as claims,
                 max(fence) filter (where to_status = 'running') over (partition by execution_id) as claimed_under
          from flowledger.transitions as steps
        ) as steps
        where to_status = 'running' and (fence is null or claims > 1)
           or from_status = 'running' and actor = 'worker' and fence is distinct from claimed_under
    """,
    "14 times and amounts make sense": """
        select executions.id, to_jsonb(executions)::text
        from crewai_flow_executions as executions
        where duration_ms < 0 or cost_usd < 0 or cost_usd = 'NaN' or token_count < 0
           or completed_at < started_at
           or (completed_at is not null) <> (status in ('completed', 'failed', 'cancelled', 'timeout'))
           or (duration_ms is not null) <> (completed_at is not null and exists (
                select from flowledger.transitions where execution_id = executions.id and to_status = 'running'))
    """,
    "17 a flow's count is the number of its rows": """
        select flows.id, flows.execution_count || ' counted'
        from crewai_flows as flows
        where flows.execution_count
              + (select count(*) from flowledger.uncounted_executions where flow_id = flows.id)
              <> (select count(*) from crewai_flow_executions where flow_id = flows.id)
    """,
    "19 only who may decide a step does": """
        select steps.execution_id, coalesce(from_status, 'birth') || ' -> ' || to_status || ' by ' || actor
        from flowledger.transitions as steps
        join crewai_flow_executions as executions on executions.id = steps.execution_id
        where not case
          when from_status is null or (from_status, to_status) = ('pending', 'cancelled') then
            actor = any (executions.executed_by::text || %(operators)s::text[])
          when to_status = 'running' or to_status = 'completed' then actor = 'worker'
          when from_status = 'pending' and to_status = 'timeout' then actor = 'reaper'
          else actor in ('worker', 'reaper')
        end
    """,
    "20 the database's clock decides, and it does not go back": """
        select execution_id, from_status || ' -> ' || to_status || ' at ' || at
        from (
          select steps.*, lag(at) over (partition by execution_id order by seq) as before
          from flowledger.transitions as steps
        ) as steps
        where at < before or at > clock_timestamp()
    """,
}

_EVERY_QUESTION = " union all ".join(
    f"select '{name.replace(chr(39), chr(39) * 2)}' as invariant, id, detail from ({text}) as broken (id, detail)"
    for name, text in _BROKEN.items()
)


def broken(
    owner: psycopg.Connection[Any], *, bare: Collection[UUID] = (), operators: Collection[str] = ()
) -> list[tuple[str, UUID, str]]:
    """What breaks an invariant: its name, the execution (for counts the flow), and what was found.

    `bare`: executions whose lease a test has taken away. `operators`: logins that may also start and cancel.
    """
    rows = owner.execute(_EVERY_QUESTION.encode(), {"bare": list(bare), "operators": list(operators)}).fetchall()
    return [(row["invariant"], row["id"], row["detail"]) for row in rows]


NAMES = tuple(_BROKEN)
