-- What may be spent in a day or a month: by a flow, by a user, by everybody. A window that is used up lets nothing start,
-- and before each LLM call room is set aside in every window that it falls into, so that calls of different workers
-- cannot pass together through the last dollar. Budgets of a single execution are kept by its worker alone.

create table if not exists flowledger.budgets (
  id         bigint generated always as identity primary key,
  scope      text not null,
  flow_id    uuid references public.crewai_flows (id) on delete cascade,
  user_id    uuid,
  period     text not null,
  usd        numeric,
  tokens     bigint,
  on_reach   text not null default 'stop',
  set_by     text not null,
  set_at     timestamptz not null default now(),
  constraint scope_is_known check (scope in ('everything', 'flow', 'user')),
  constraint a_flow_is_named_for_flows_alone check ((scope = 'flow') = (flow_id is not null)),
  constraint a_user_is_named_for_users_alone check (user_id is null or scope = 'user'),
  constraint period_is_day_or_month check (period in ('day', 'month')),
  constraint something_is_limited check (num_nonnulls(usd, tokens) > 0),
  constraint limits_are_zero_or_more check (usd >= 0 and usd <> 'NaN' and tokens >= 0),
  constraint on_reach_is_stop_or_warn check (on_reach in ('stop', 'warn'))
);
comment on table flowledger.budgets is 'Windows: what may be spent in a day or a month, UTC.';
comment on column flowledger.budgets.user_id is 'NULL with scope user: each user has so much.';
comment on column flowledger.budgets.usd is 'NULL: no limit in USD.';
comment on column flowledger.budgets.on_reach is 'stop: nothing starts and no call is made beyond it. warn: it is said.';
create unique index if not exists one_budget_of_each_kind on flowledger.budgets (
  scope, coalesce(flow_id, '00000000-0000-0000-0000-000000000000'),
  coalesce(user_id, '00000000-0000-0000-0000-000000000000'), period);

create table if not exists flowledger.reservations (
  execution_id  uuid not null references public.crewai_flow_executions (id) on delete cascade,
  number        integer not null,
  flow_id       uuid not null,
  executed_by   uuid,
  usd           numeric,
  tokens        bigint not null,
  reserved_at   timestamptz not null default clock_timestamp(),
  constraint reservations_pkey primary key (execution_id, number)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 200);
comment on table flowledger.reservations is 'The most that LLM calls can take which are being made in some window, until it is known.';
comment on column flowledger.reservations.usd is 'NULL: the model has no price.';

-- The windows that an execution of this flow and user falls into, and what was spent in each. What nobody knows the cost of
-- counts as what was set aside for it.
create or replace function flowledger.windows(flow uuid, by_user uuid) returns table (
  id bigint, scope text, period text, on_reach text, limit_usd numeric, limit_tokens bigint, spent_usd numeric,
  spent_tokens bigint, reserved_usd numeric, reserved_tokens bigint
)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select budgets.id, budgets.scope, budgets.period, budgets.on_reach, budgets.usd, budgets.tokens,
         spent.usd, spent.tokens, reserved.usd, reserved.tokens
  from flowledger.budgets as budgets
  cross join lateral (
    select coalesce(sum(amounts.cost_usd + amounts.estimated_usd), 0) as usd,
           coalesce(sum(amounts.input_tokens + amounts.output_tokens + amounts.estimated_tokens), 0)::bigint as tokens
    from flowledger.spending_now as amounts
    where amounts.day >= date_trunc(budgets.period, now() at time zone 'UTC')::date
      -- Each dimension holds the whole, and that of the modes has the fewest rows. Named, so that the index finds them.
      and amounts.dimension = case budgets.scope when 'everything' then 'mode' else budgets.scope end
      and amounts.key = any (case budgets.scope
                               when 'everything' then array['manual', 'scheduled', 'triggered', '']
                               when 'flow' then array[flow::text]
                               else array[by_user::text]
                             end)
  ) as spent
  cross join lateral (
    select coalesce(sum(waiting.usd), 0) as usd, coalesce(sum(waiting.tokens), 0)::bigint as tokens
    from flowledger.reservations as waiting
    where case budgets.scope
            when 'flow' then waiting.flow_id = flow
            when 'user' then waiting.executed_by = by_user
            else true
          end
  ) as reserved
  where case budgets.scope
          when 'flow' then budgets.flow_id = flow
          when 'user' then by_user is not null and coalesce(budgets.user_id, by_user) = by_user
          else true
        end
$$;

-- Why nothing of this flow and user may start: a window that is used up. NULL: none is. It is told to the user, so it holds
-- no amounts but of the user's own window: the others tell what everybody spends.
create or replace function flowledger.used_up(flow uuid, by_user uuid) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select format('the %s''s budget of %s is used up',
                windows.period,
                case windows.scope when 'flow' then 'this flow' when 'user' then 'this user' else 'everything' end)
         || case
              when windows.scope <> 'user' then ''
              when windows.spent_usd >= windows.limit_usd
                then format(': $%s of $%s', trim_scale(windows.spent_usd), trim_scale(windows.limit_usd))
              else format(': %s of %s tokens', windows.spent_tokens, windows.limit_tokens)
            end
  from flowledger.windows(flow, by_user) as windows
  where windows.on_reach = 'stop'
    and (windows.spent_usd >= windows.limit_usd or windows.spent_tokens >= windows.limit_tokens)
  order by windows.id
  limit 1
$$;

-- Sets aside the most that a call can take, in every window that its execution falls into. No row: it may be made. A row is
-- the window that has no room: `is_final` false means that there is some as soon as calls that are being made turn out
-- cheaper. A window that only warns is told with `is_warning`, and the call may be made. Asking again for the same call
-- begins anew, so that a lost answer may be asked for again.
create or replace function flowledger.reserve(
  execution uuid, fence bigint, number integer, usd numeric, tokens bigint
) returns table (
  scope text, period text, unit text, spent numeric, reserved numeric, limit_ numeric, is_final boolean, is_warning boolean
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  flow uuid;
  by_user uuid;
  may_be_made boolean := true;
begin
  -- Whoever ends the execution waits meanwhile, and then finds what was set aside. The ledger row comes first in the order
  -- of locks.
  perform from public.crewai_flow_executions as executions where executions.id = execution for share;
  select leases.flow_id, leases.executed_by into flow, by_user
  from flowledger.leases as leases
  where leases.execution_id = execution and leases.fence = reserve.fence;
  if not found then
    return;
  end if;

  -- Looking and setting aside must not interleave, so one call at a time passes here. One order for all.
  perform from flowledger.budgets as budgets
  where budgets.scope = 'everything' or budgets.flow_id = flow
     or budgets.scope = 'user' and coalesce(budgets.user_id, by_user) = by_user
  order by budgets.id
  for no key update;
  if not found then
    return;
  end if;

  delete from flowledger.reservations as reservations
  where reservations.execution_id = execution and reservations.number = reserve.number;

  for scope, period, unit, spent, reserved, limit_, is_final, is_warning in
    select windows.scope, windows.period, full_.unit, full_.spent, full_.reserved, full_.limit_,
           full_.worst is null or full_.spent + full_.worst > full_.limit_, windows.on_reach = 'warn'
    from flowledger.windows(flow, by_user) as windows
    cross join lateral (values
      ('usd', usd, windows.spent_usd, windows.reserved_usd, windows.limit_usd),
      ('tokens', tokens::numeric, windows.spent_tokens, windows.reserved_tokens, windows.limit_tokens)
    ) as full_ (unit, worst, spent, reserved, limit_)
    where full_.limit_ is not null
      and (full_.worst is null or full_.spent + full_.reserved + full_.worst > full_.limit_)
    order by windows.on_reach, windows.id
  loop
    may_be_made := may_be_made and is_warning;
    return next;
  end loop;

  if may_be_made then
    insert into flowledger.reservations (execution_id, number, flow_id, executed_by, usd, tokens)
    values (execution, number, flow, by_user, usd, tokens);
  end if;
end
$$;

-- The call was refused by somebody else, or never made.
create or replace function flowledger.release(execution uuid, number integer) returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  delete from flowledger.reservations as reservations
  where reservations.execution_id = execution and reservations.number = release.number
$$;

-- An amount given in metadata, as a JSON number or as text; NULL for anything that makes no sense.
create or replace function flowledger.amount_of(given jsonb) returns numeric
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case when jsonb_typeof(given) = 'number' or given #>> '{}' ~ '^[0-9]{1,12}(\.[0-9]{1,12})?$' then
    case when (given #>> '{}')::numeric between 0 and 999999999999 then (given #>> '{}')::numeric end
  end
$$;

-- The same for what is counted: a whole number that fits an integer.
create or replace function flowledger.count_of(given jsonb) returns integer
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case when flowledger.amount_of(given) <= 2147483647 and flowledger.amount_of(given) % 1 = 0
    then flowledger.amount_of(given)::integer
  end
$$;

-- Sets what may be spent in a window, or changes it. Answers its id.
create or replace function flowledger.set_budget(
  scope text, flow uuid, by_user uuid, period text, usd numeric, tokens bigint, on_reach text
) returns bigint
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into flowledger.budgets as known (scope, flow_id, user_id, period, usd, tokens, on_reach, set_by)
  values (scope, flow, by_user, period, usd, tokens, on_reach, flowledger.caller())
  on conflict (scope, coalesce(flow_id, '00000000-0000-0000-0000-000000000000'),
               coalesce(user_id, '00000000-0000-0000-0000-000000000000'), period)
  do update set usd = excluded.usd, tokens = excluded.tokens, on_reach = excluded.on_reach, set_by = excluded.set_by,
                set_at = excluded.set_at
  returning id
$$;

-- Takes a window away. Answers whether it was there.
create or replace function flowledger.remove_budget(budget bigint) returns boolean
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  with removed as (
    delete from flowledger.budgets where id = budget returning 1
  )
  select exists (select from removed)
$$;
