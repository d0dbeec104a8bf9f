-- LLM calls: what they used and cost.

-- name: append
-- Adds calls of executions that are still held; repeating it adds nothing.
select flowledger.append_usage(%(executions)b, %(fences)b::bigint[], %(calls)b::text[]::jsonb[])

-- name: read
-- The calls of one execution, in the order in which they began, after the given number, the first `most`.
select number, sequence, call_id, status, model, provider, step, crew, agent, task, started_at, latency_ms,
       first_token_ms, finish_reason, retries, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens,
       reasoning_tokens, price, estimated_usd
from flowledger.usage
where execution_id = %(execution)s and number > %(after)s
order by number
limit %(most)s

-- name: spent
-- What the calls of these executions used and cost, by flow, model and how they ended. For operators.
select flows.flow_key, usage.model, usage.status, count(*) as calls,
       count(*) filter (where usage.cost_usd is null and usage.status <> 'failed') as unknown_costs,
       coalesce(sum(usage.input_tokens), 0) as input_tokens,
       coalesce(sum(usage.cached_input_tokens), 0) as cached_input_tokens,
       coalesce(sum(usage.cache_write_tokens), 0) as cache_write_tokens,
       coalesce(sum(usage.output_tokens), 0) as output_tokens,
       coalesce(sum(usage.reasoning_tokens), 0) as reasoning_tokens,
       coalesce(sum(usage.cost_usd), 0) as cost_usd
from flowledger.usage as usage
join flowledger.every_execution as executions on executions.id = usage.execution_id
join public.crewai_flows as flows on flows.id = executions.flow_id
where usage.execution_id = any (%(executions)s)
group by flows.flow_key, usage.model, usage.status

-- name: repricings
-- Later looks at what one execution cost, the latest first.
select repriced_at, repriced_by, old_usd, new_usd, prices
from flowledger.repricings
where execution_id = %(execution)s
order by repriced_at desc

-- name: reserve
-- Sets aside the most that a call can take in the windows of its execution; rows are those that have no room.
select * from flowledger.reserve(%(execution)s, %(fence)s, %(number)s, %(usd)s, %(tokens)s)

-- name: has_windows
-- Whether there is any budget for a day or a month.
select exists (select from flowledger.budgets) as found

-- name: fold
-- Adds the latest amounts to the sums by day.
select flowledger.fold_spending()
