-- What was spent: sums over days. Operators read the rollup; users the rows that they may see, of which it is made.

-- name: of_all
-- Amounts along one dimension, by its keys, by day, or by both. Flows are named last, when little is left to be named.
with sums as (
  select case when %(by_day)s then amounts.day end as day,
         case when %(by_key)s then amounts.key end as key,
         sum(amounts.executions)::bigint as executions,
         sum(amounts.failed)::bigint as failed,
         sum(amounts.calls)::bigint as calls,
         sum(amounts.failed_calls)::bigint as failed_calls,
         sum(amounts.unknown_calls)::bigint as unknown_calls,
         sum(amounts.unpriced_calls)::bigint as unpriced_calls,
         sum(amounts.input_tokens)::bigint as input_tokens,
         sum(amounts.cached_input_tokens)::bigint as cached_input_tokens,
         sum(amounts.cache_write_tokens)::bigint as cache_write_tokens,
         sum(amounts.output_tokens)::bigint as output_tokens,
         sum(amounts.reasoning_tokens)::bigint as reasoning_tokens,
         sum(amounts.cost_usd) as cost_usd,
         sum(amounts.cost_usd + amounts.repriced_usd) as repriced_usd
  from flowledger.spending_now as amounts
  where amounts.dimension = %(dimension)s
    and (%(first)s::date is null or amounts.day >= %(first)s)
    and (%(last)s::date is null or amounts.day <= %(last)s)
    -- One of them at most, along its own dimension.
    and (coalesce(%(flow)s::uuid, %(meeting)s::uuid) is null
         or amounts.key = coalesce(%(flow)s::uuid, %(meeting)s::uuid)::text)
  group by 1, 2
)
select sums.day, coalesce(flows.flow_key, sums.key) as key, sums.executions, sums.failed, sums.calls, sums.failed_calls,
       sums.unknown_calls, sums.unpriced_calls, sums.input_tokens, sums.cached_input_tokens, sums.cache_write_tokens,
       sums.output_tokens, sums.reasoning_tokens, sums.cost_usd, sums.repriced_usd
from sums
left join public.crewai_flows as flows on %(dimension)s = 'flow' and flows.id::text = sums.key

-- name: of_rows
-- The same from the rows themselves: of one user, or of one flow or meeting along another dimension. `executed_by` is named beside
-- the policy, so that the planner turns the policy into a one-time filter.
with chosen as (
  select executions.id, executions.flow_id, executions.executed_by, executions.execution_mode,
         executions.board_meeting_id, executions.status,
         -- Tables that were here before may hold times that no calendar of Python's has.
         (least(greatest(coalesce(executions.completed_at, executions.started_at), '0001-01-02Z'), '9999-12-30Z')
           at time zone 'UTC')::date as ended_on
  from {executions} as executions
  where (%(user)s::uuid is null or executions.executed_by = %(user)s)
    and (%(flow)s::uuid is null or executions.flow_id = %(flow)s)
    and (%(meeting)s::uuid is null or executions.board_meeting_id = %(meeting)s)
    -- What ended before that day was called before it.
    and (%(first)s::date is null or executions.completed_at is null
         or executions.completed_at >= %(first)s::timestamp at time zone 'UTC')
), amounts as (
  select chosen.id, (usage.started_at at time zone 'UTC')::date as day, usage.model, 0 as executions, 0 as failed,
         1 as calls,
         (usage.status = 'failed')::integer as failed_calls,
         (usage.input_tokens is null and usage.status <> 'failed')::integer as unknown_calls,
         (usage.input_tokens is not null and coalesce(repriced.cost_usd, usage.cost_usd) is null)::integer
           as unpriced_calls,
         coalesce(usage.input_tokens, 0) as input_tokens,
         coalesce(usage.cached_input_tokens, 0) as cached_input_tokens,
         coalesce(usage.cache_write_tokens, 0) as cache_write_tokens,
         coalesce(usage.output_tokens, 0) as output_tokens,
         coalesce(usage.reasoning_tokens, 0) as reasoning_tokens,
         coalesce(usage.cost_usd, 0) as cost_usd,
         coalesce(repriced.cost_usd, usage.cost_usd, 0) as repriced_usd
  from chosen
  join flowledger.usage as usage on usage.execution_id = chosen.id
  left join flowledger.repriced_calls as repriced
    on repriced.execution_id = usage.execution_id and repriced.number = usage.number
  union all
  select chosen.id, chosen.ended_on, '', 1, (chosen.status in ('failed', 'timeout'))::integer,
         0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
  from chosen
  where chosen.status in ('completed', 'failed', 'cancelled', 'timeout')
)
select case when %(by_day)s then amounts.day end as day,
       case when %(by_key)s then
         case %(dimension)s
           when 'flow' then coalesce(flows.flow_key, chosen.flow_id::text)
           when 'user' then coalesce(chosen.executed_by::text, '')
           when 'mode' then coalesce(chosen.execution_mode, '')
           when 'meeting' then coalesce(chosen.board_meeting_id::text, '')
           else amounts.model
         end
       end as key,
       sum(amounts.executions)::bigint as executions,
       sum(amounts.failed)::bigint as failed,
       sum(amounts.calls)::bigint as calls,
       sum(amounts.failed_calls)::bigint as failed_calls,
       sum(amounts.unknown_calls)::bigint as unknown_calls,
       sum(amounts.unpriced_calls)::bigint as unpriced_calls,
       sum(amounts.input_tokens)::bigint as input_tokens,
       sum(amounts.cached_input_tokens)::bigint as cached_input_tokens,
       sum(amounts.cache_write_tokens)::bigint as cache_write_tokens,
       sum(amounts.output_tokens)::bigint as output_tokens,
       sum(amounts.reasoning_tokens)::bigint as reasoning_tokens,
       sum(amounts.cost_usd) as cost_usd,
       sum(amounts.repriced_usd) as repriced_usd
from amounts
join chosen on chosen.id = amounts.id
left join public.crewai_flows as flows on flows.id = chosen.flow_id
where (%(first)s::date is null or amounts.day >= %(first)s)
  and (%(last)s::date is null or amounts.day <= %(last)s)
group by 1, 2

-- name: estimate
-- Medians over the latest completed executions of a flow: of each what is known, and of two in the middle the lower.
with latest as (
  select executions.id, executions.token_count, executions.cost_usd, executions.duration_ms
  from {executions} as executions
  where executions.flow_id = %(flow)s
    and executions.status = 'completed'
    and (%(user)s::uuid is null or executions.executed_by = %(user)s)
  order by executions.started_at desc
  limit %(most)s
), known as (
  select latest.token_count, latest.duration_ms,
         -- The row rounds; its calls do not.
         case when latest.cost_usd is not null then
           coalesce((select sum(usage.cost_usd) from flowledger.usage as usage where usage.execution_id = latest.id),
                    latest.cost_usd)
         end as cost_usd
  from latest
)
select count(*) as runs,
       percentile_disc(0.5) within group (order by cost_usd) as cost_usd,
       percentile_disc(0.5) within group (order by token_count) as tokens,
       percentile_disc(0.5) within group (order by duration_ms) as duration_ms
from known
