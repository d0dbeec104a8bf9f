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
    "the row of a reaped execution tells the sum of its calls": """
        select executions.id, coalesce(executions.token_count::text, 'no') || ' tokens, $' || executions.cost_usd
        from crewai_flow_executions as executions
        join flowledger.transitions as ends on ends.execution_id = executions.id
        cross join lateral flowledger.usage_total(executions.id) as used
        where ends.from_status = 'running' and ends.actor = 'reaper'
          and (executions.token_count, executions.cost_usd) is distinct from (used.token_count, round(used.cost_usd, 4))
    """,
    "room is set aside for what runs only": """
        select reservations.execution_id, 'call ' || reservations.number
        from flowledger.reservations
        where reservations.execution_id <> all (%(bare)s)
          and not exists (select from flowledger.leases where execution_id = reservations.execution_id)
    """,
    "what failed is among the failures, and nothing else is": """
        select executions.id, executions.status
        from crewai_flow_executions as executions
        left join flowledger.failures on failures.execution_id = executions.id
        where (executions.status in ('failed', 'timeout')) is distinct from (failures.execution_id is not null)
    """,
    "what has ended is listed as the row has it, and nothing else is": """
        select coalesce(executions.id, listed.execution_id), executions.status
        from crewai_flow_executions as executions
        full join flowledger.ended_executions as listed on listed.execution_id = executions.id
        where (executions.status in ('completed', 'failed', 'cancelled', 'timeout'))
                is distinct from (listed.execution_id is not null)
           or listed.execution_id is not null
              and (listed.status, listed.executed_by, listed.flow_id, listed.execution_mode, listed.board_meeting_id)
                is distinct from (executions.status, executions.executed_by, executions.flow_id,
                                  executions.execution_mode, executions.board_meeting_id)
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

_AMOUNTS = (
    "executions", "failed", "calls", "failed_calls", "unknown_calls", "unpriced_calls", "input_tokens",
    "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens", "cost_usd", "estimated_usd",
    "estimated_tokens", "repriced_usd",
)  # fmt: skip
_SUMS = "array[" + ", ".join(f"sum({name})::numeric" for name in _AMOUNTS) + "]"

_BROKEN["what was spent is what the calls and the ended executions say, along every dimension"] = f"""
    with facts as (
      select (usage.started_at at time zone 'UTC')::date as day, executions.flow_id, executions.executed_by,
             executions.execution_mode, executions.board_meeting_id, usage.model,
             0 as executions, 0 as failed, 1 as calls,
             (usage.status = 'failed')::integer as failed_calls,
             (usage.input_tokens is null and usage.status <> 'failed')::integer as unknown_calls,
             (usage.input_tokens is not null and coalesce(repriced.cost_usd, usage.cost_usd) is null)::integer
               as unpriced_calls,
             coalesce(input_tokens, 0) as input_tokens, coalesce(cached_input_tokens, 0) as cached_input_tokens,
             coalesce(cache_write_tokens, 0) as cache_write_tokens, coalesce(output_tokens, 0) as output_tokens,
             coalesce(reasoning_tokens, 0) as reasoning_tokens, coalesce(usage.cost_usd, 0) as cost_usd,
             coalesce(estimated_usd, 0) as estimated_usd, coalesce(estimated_tokens, 0) as estimated_tokens,
             coalesce(repriced.cost_usd - coalesce(usage.cost_usd, 0), 0) as repriced_usd
      from flowledger.usage
      join crewai_flow_executions as executions on executions.id = usage.execution_id
      left join flowledger.repriced_calls as repriced using (execution_id, number)
      union all
      select (coalesce(completed_at, started_at) at time zone 'UTC')::date, flow_id, executed_by, execution_mode,
             board_meeting_id, null, 1, (status in ('failed', 'timeout'))::integer,
             0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
      from crewai_flow_executions
      where status in ('completed', 'failed', 'cancelled', 'timeout')
    ), due as (
      select along.dimension, facts.day, along.key, {_SUMS} as amounts
      from facts
      cross join lateral (values
        ('flow', flow_id::text), ('user', coalesce(executed_by::text, '')), ('mode', coalesce(execution_mode, '')),
        ('meeting', coalesce(board_meeting_id::text, '')), ('model', coalesce(model, ''))
      ) as along (dimension, key)
      group by 1, 2, 3
    ), told as (
      select dimension, day, key, {_SUMS} as amounts from flowledger.spending_now group by 1, 2, 3
    )
    select null::uuid,
           concat_ws(' ', dimension, day, nullif(key, ''), 'due', due.amounts::text, 'told', told.amounts::text)
    from due
    full join told using (dimension, day, key)
    where due.amounts is distinct from told.amounts
"""

_EVERY_QUESTION = " union all ".join(
    f"select '{name.replace(chr(39), chr(39) * 2)}' as invariant, id, detail from ({text}) as broken (id, detail)"
    for name, text in _BROKEN.items()
)


def broken(
    owner: psycopg.Connection[Any], *, bare: Collection[UUID] = (), operators: Collection[str] = ()
) -> list[tuple[str, UUID | None, str]]:
    """What breaks an invariant: its name, the execution (for counts the flow, for sums none), and what was found.

    `bare`: executions whose lease a test has taken away. `operators`: logins that may also start and cancel.
    """
    rows = owner.execute(_EVERY_QUESTION.encode(), {"bare": list(bare), "operators": list(operators)}).fetchall()
    return [(row["invariant"], row["id"], row["detail"]) for row in rows]


NAMES = tuple(_BROKEN)
