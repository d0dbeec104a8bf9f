-- What ended executions cost at prices that came later.

-- name: page
-- The calls with tokens of the next executions that ended, as they count now: by the last repricing, else as priced then.
with page as (
  select executions.id, executions.started_at
  from flowledger.every_execution as executions
  where executions.status = any (%(ended)s)
    and executions.started_at >= %(since)s
    and (%(flow)s::uuid is null or executions.flow_id = %(flow)s)
    and (%(after_started_at)s::timestamptz is null
         or (executions.started_at, executions.id) > (%(after_started_at)s, %(after_id)s))
  order by executions.started_at, executions.id
  limit %(limit)s
)
select page.started_at as execution_started_at, page.id as execution_id, calls.*
from page
left join lateral (
  select usage.number, usage.model, usage.provider, usage.started_at, usage.input_tokens, usage.cached_input_tokens,
         usage.cache_write_tokens, usage.output_tokens, usage.reasoning_tokens,
         coalesce(repriced.cost_usd, usage.cost_usd) as cost_usd
  from flowledger.usage as usage
  left join flowledger.repriced_calls as repriced
    on repriced.execution_id = page.id and repriced.number = usage.number
  where usage.execution_id = page.id
    and usage.input_tokens is not null
    and (%(model)s::text is null or usage.model = %(model)s)
  -- Keeps the planner from reading all calls of the ledger for a page of them.
  offset 0
) as calls on true
order by page.started_at, page.id, calls.number

-- name: record
-- Notes what calls cost at other prices.
select flowledger.reprice(%(executions)s, %(numbers)s, %(prices)s::text[]::jsonb[], %(costs)s::text[]::numeric[]) as repriced
