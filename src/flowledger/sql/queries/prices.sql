-- The team's own prices, and the models that calls were made of.

-- name: list
-- Every price of the team, by model; the latest of each first.
select model, nullif(provider, '') as provider, nullif(since, '-infinity') as since, input_usd, output_usd,
       cached_input_usd, cache_write_usd, reasoning_usd, call_usd, set_by, set_at
from flowledger.prices
order by model, provider, prices.since desc

-- name: set
-- Sets prices, all or none.
select flowledger.set_prices(%(prices)s) as changed

-- name: remove
-- Forgets one price.
select flowledger.remove_price(%(model)s, %(provider)s, %(since)s) as removed

-- name: seen_of_all
-- The models that calls were made of since then, and how many of the calls have tokens and no cost. For operators.
select usage.model, usage.provider, count(*) as calls, max(usage.started_at) as last_call_at,
       count(*) filter (
         where usage.input_tokens is not null and coalesce(repriced.cost_usd, usage.cost_usd) is null
       ) as unpriced_calls
from flowledger.usage as usage
left join flowledger.repriced_calls as repriced using (execution_id, number)
where usage.started_at >= %(since)s
group by usage.model, usage.provider
order by usage.model, usage.provider

-- name: seen_of_user
-- The same of one user's own calls. What ended before that moment was called before it.
select usage.model, usage.provider, count(*) as calls, max(usage.started_at) as last_call_at,
       count(*) filter (
         where usage.input_tokens is not null and coalesce(repriced.cost_usd, usage.cost_usd) is null
       ) as unpriced_calls
from public.crewai_flow_executions as executions
join flowledger.usage as usage on usage.execution_id = executions.id
left join flowledger.repriced_calls as repriced
  on repriced.execution_id = usage.execution_id and repriced.number = usage.number
where executions.executed_by = %(user)s
  and (executions.completed_at is null or executions.completed_at >= %(since)s)
  and usage.started_at >= %(since)s
group by usage.model, usage.provider
order by usage.model, usage.provider

-- name: ever_seen
-- The names of all models that calls were ever made of, pruned ones included.
select distinct key as model
from flowledger.spending_now
where dimension = 'model' and key <> ''
