-- Windows: what may be spent in a day or a month. For operators.

-- name: list
-- Every window with what is spent and set aside in it now. One of each user tells of who has spent the most.
select budgets.id, budgets.scope, flows.flow_key, budgets.user_id, budgets.period, budgets.usd, budgets.tokens,
       budgets.on_reach, budgets.set_by, budgets.set_at,
       coalesce(budgets.user_id, dearest.user_id) as told_of,
       coalesce(windows.spent_usd, 0) as spent_usd, coalesce(windows.spent_tokens, 0) as spent_tokens,
       coalesce(windows.reserved_usd, 0) as reserved_usd, coalesce(windows.reserved_tokens, 0) as reserved_tokens
from flowledger.budgets as budgets
left join public.crewai_flows as flows on flows.id = budgets.flow_id
left join lateral (
  select amounts.key::uuid as user_id
  from flowledger.spending_now as amounts
  where budgets.scope = 'user' and budgets.user_id is null
    and amounts.dimension = 'user'
    and amounts.key <> ''
    and amounts.day >= date_trunc(budgets.period, now() at time zone 'UTC')::date
  group by amounts.key
  order by case when budgets.usd is not null then sum(amounts.cost_usd + amounts.estimated_usd) end desc,
           sum(amounts.input_tokens + amounts.output_tokens + amounts.estimated_tokens) desc
  limit 1
) as dearest on true
left join lateral flowledger.windows(budgets.flow_id, coalesce(budgets.user_id, dearest.user_id)) as windows
  on windows.id = budgets.id
order by budgets.scope, flows.flow_key, budgets.user_id nulls first, budgets.period, budgets.id

-- name: set
-- Sets a window, or changes it.
select flowledger.set_budget(
  %(scope)s, %(flow)s, %(user)s, %(period)s, %(usd)s, %(tokens)s, %(on_reach)s
) as id

-- name: remove
-- Takes a window away.
select flowledger.remove_budget(%(id)s) as removed
