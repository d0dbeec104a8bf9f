-- LLM calls, one row each: what they used, at which price, and what that cost. Money is exact here; the ledger row
-- rounds. Appended by the lease's holder only.

create table if not exists flowledger.usage (
  execution_id         uuid not null references public.crewai_flow_executions (id) on delete cascade,
  number               integer not null,
  sequence             integer,
  call_id              text not null,
  status               text not null,
  model                text not null,
  provider             text not null,
  step                 text,
  crew                 text,
  agent                text,
  task                 text,
  started_at           timestamptz not null,
  latency_ms           double precision,
  first_token_ms       double precision,
  finish_reason        text,
  retries              integer not null default 0,
  input_tokens         bigint,
  cached_input_tokens  bigint,
  cache_write_tokens   bigint,
  output_tokens        bigint,
  reasoning_tokens     bigint,
  price                jsonb,
  cost_usd             numeric,
  estimated_usd        numeric,
  estimated_tokens     bigint,
  constraint usage_pkey primary key (execution_id, number),
  constraint status_is_completed_failed_or_unknown check (status in ('completed', 'failed', 'unknown')),
  constraint tokens_are_all_known_or_all_unknown
    check (num_nulls(input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens) in (0, 5)),
  constraint tokens_are_counted_from_zero
    check (least(input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
                 estimated_tokens) >= 0),
  -- So large that no call is, and so small that sums over millions of calls stay numbers.
  constraint no_call_has_a_trillion_tokens
    check (greatest(input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
                    estimated_tokens) < 1000000000000),
  constraint money_is_counted_from_zero
    check (cost_usd >= 0 and cost_usd <> 'NaN' and estimated_usd >= 0 and estimated_usd <> 'NaN'),
  constraint a_cost_has_tokens_and_a_price check (cost_usd is null or (input_tokens is not null and price is not null))
) with (autovacuum_vacuum_insert_scale_factor = 0.05);
comment on table flowledger.usage is 'LLM calls: tokens by class, price, exact cost.';
comment on column flowledger.usage.number is 'Counts from 1 within its execution, in the order in which calls began.';
comment on column flowledger.usage.sequence is 'The event of the timeline with which it began.';
comment on column flowledger.usage.status is 'unknown: nobody saw it end. It may have been billed.';
comment on column flowledger.usage.model is 'As asked for, without the provider''s prefix.';
comment on column flowledger.usage.step is 'The flow''s method.';
comment on column flowledger.usage.latency_ms is 'From the start to the end. NULL: nobody saw it end.';
comment on column flowledger.usage.first_token_ms is 'From the start to the first piece of a streamed answer. NULL: not streamed.';
comment on column flowledger.usage.retries is 'Failed attempts before this one, of the same request.';
comment on column flowledger.usage.input_tokens is 'Cached input and cache writes included. NULL: nobody reported any tokens.';
comment on column flowledger.usage.output_tokens is 'Reasoning included.';
comment on column flowledger.usage.price is 'USD per million tokens of each class, as text, with source and version. NULL: the model had no price.';
comment on column flowledger.usage.cost_usd is 'Exact. NULL: unknown, for want of tokens or of a price.';
comment on column flowledger.usage.estimated_usd is
  'What a budget had set aside for a call that nobody knows the cost of: it counts in windows and never as a cost.';
comment on column flowledger.usage.estimated_tokens is 'The same of a call that nobody reported tokens of.';
create index if not exists usage_of_model on flowledger.usage (model, started_at);

-- Prices that the team has set itself. They come before those of any catalogue.
create table if not exists flowledger.prices (
  model                    text not null,
  provider                 text not null default '',
  since                    timestamptz not null default '-infinity',
  input_usd                numeric not null,
  output_usd               numeric not null,
  cached_input_usd         numeric,
  cache_write_usd          numeric,
  reasoning_usd            numeric,
  call_usd                 numeric not null default 0,
  set_by                   text not null,
  set_at                   timestamptz not null default now(),
  constraint prices_pkey primary key (model, provider, since),
  -- NaN and infinity are greater than any number.
  constraint prices_are_between_zero_and_a_million check (
    least(input_usd, output_usd, cached_input_usd, cache_write_usd, reasoning_usd, call_usd) >= 0
    and greatest(input_usd, output_usd, cached_input_usd, cache_write_usd, reasoning_usd, call_usd) <= 1000000)
);
comment on table flowledger.prices is 'The team''s own prices, in USD per million tokens of each class.';
comment on column flowledger.prices.provider is 'Empty: whoever serves the model.';
comment on column flowledger.prices.since is 'Calls that began before are not priced so.';
comment on column flowledger.prices.cached_input_usd is 'NULL: as input. The same holds for cache writes, and for reasoning as output.';
comment on column flowledger.prices.call_usd is 'USD for each call, whatever its size.';

-- What executions that have ended would have cost at prices that came later. Their own rows keep what was known then.
create table if not exists flowledger.repricings (
  execution_id  uuid not null references public.crewai_flow_executions (id) on delete cascade,
  repriced_at   timestamptz not null default clock_timestamp(),
  repriced_by   text not null,
  old_usd       numeric,
  new_usd       numeric,
  prices        jsonb not null,
  constraint repricings_pkey primary key (execution_id, repriced_at)
);
comment on table flowledger.repricings is 'Later looks at what executions cost. The last one counts; the row itself is frozen.';
comment on column flowledger.repricings.old_usd is 'What the execution''s row says, exactly. NULL: unknown then.';
comment on column flowledger.repricings.new_usd is 'NULL: still unknown.';
comment on column flowledger.repricings.prices is
  'Model -> price used, for calls that were ever repriced. Of several, that of the last call.';

-- What calls of ended executions cost at prices that came later. A call that is not here costs what flowledger.usage says.
create table if not exists flowledger.repriced_calls (
  execution_id  uuid not null references public.crewai_flow_executions (id) on delete cascade,
  number        integer not null,
  price         jsonb not null,
  cost_usd      numeric not null,
  constraint repriced_calls_pkey primary key (execution_id, number),
  constraint money_is_counted_from_zero check (cost_usd >= 0 and cost_usd <> 'NaN')
);
comment on table flowledger.repriced_calls is 'LLM calls as the last repricing left them, where that is not what flowledger.usage says.';
comment on column flowledger.repriced_calls.price is 'As in flowledger.usage.';
comment on column flowledger.repriced_calls.cost_usd is 'Exact.';

-- Adds calls of executions that are still held under the given fence, and their sums to what was spent. Repeating it adds
-- nothing. `calls` are rows of flowledger.usage as JSON. What was set aside for a call is free again; where nobody knows
-- what it took, that is kept as the estimate.
create or replace function flowledger.append_usage(executions uuid[], fences bigint[], calls jsonb[]) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  added bigint;
begin
  -- Whoever ends one of them waits meanwhile, and then finds all its calls. One order for all.
  perform from public.crewai_flow_executions as ledger
  where ledger.id = any (executions)
  order by ledger.id
  for share;

  with given as (
    select held.execution_id, call.*, reservations.usd as reserved_usd, reservations.tokens as reserved_tokens
    from unnest(executions, fences, calls) as held (execution_id, fence, call)
    join flowledger.leases as leases using (execution_id, fence)
    cross join lateral jsonb_to_record(held.call) as call (
      number integer, sequence integer, call_id text, status text, model text, provider text, step text, crew text,
      agent text, task text, started_at timestamptz, latency_ms double precision, first_token_ms double precision,
      finish_reason text, retries integer, input_tokens bigint, cached_input_tokens bigint, cache_write_tokens bigint,
      output_tokens bigint, reasoning_tokens bigint, price jsonb, cost_usd numeric, estimated_usd numeric)
    left join flowledger.reservations as reservations
      on reservations.execution_id = held.execution_id and reservations.number = call.number
  ), appended as (
    insert into flowledger.usage as usage (
      execution_id, number, sequence, call_id, status, model, provider, step, crew, agent, task, started_at, latency_ms,
      first_token_ms, finish_reason, retries, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens,
      reasoning_tokens, price, cost_usd, estimated_usd, estimated_tokens
    )
    select given.execution_id, given.number, given.sequence, given.call_id, given.status, given.model, given.provider,
           given.step, given.crew, given.agent, given.task, given.started_at, given.latency_ms, given.first_token_ms,
           given.finish_reason, coalesce(given.retries, 0), given.input_tokens, given.cached_input_tokens,
           given.cache_write_tokens, given.output_tokens, given.reasoning_tokens, given.price, given.cost_usd,
           -- A call that failed without a word of tokens took none.
           case when given.cost_usd is null
             then coalesce(given.estimated_usd, case when given.status <> 'failed' then given.reserved_usd end) end,
           case when given.input_tokens is null and given.status <> 'failed' then given.reserved_tokens end
    from given
    on conflict do nothing
    returning usage.*
  ), settled as (
    delete from flowledger.reservations as reservations
    using appended
    where reservations.execution_id = appended.execution_id and reservations.number = appended.number
  ), counted as (
    insert into flowledger.unfolded_spending (
      day, flow_id, executed_by, execution_mode, board_meeting_id, model, calls, failed_calls, unknown_calls,
      unpriced_calls, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_usd,
      estimated_usd, estimated_tokens
    )
    select (appended.started_at at time zone 'UTC')::date, ledger.flow_id, ledger.executed_by, ledger.execution_mode,
           ledger.board_meeting_id, appended.model, count(*),
           count(*) filter (where appended.status = 'failed'),
           count(*) filter (where appended.input_tokens is null and appended.status <> 'failed'),
           count(*) filter (where appended.input_tokens is not null and appended.cost_usd is null),
           coalesce(sum(appended.input_tokens), 0), coalesce(sum(appended.cached_input_tokens), 0),
           coalesce(sum(appended.cache_write_tokens), 0), coalesce(sum(appended.output_tokens), 0),
           coalesce(sum(appended.reasoning_tokens), 0), coalesce(sum(appended.cost_usd), 0),
           coalesce(sum(appended.estimated_usd), 0), coalesce(sum(appended.estimated_tokens), 0)
    from appended
    join public.crewai_flow_executions as ledger on ledger.id = appended.execution_id
    group by 1, ledger.flow_id, ledger.executed_by, ledger.execution_mode, ledger.board_meeting_id, appended.model
  )
  select count(*) into added from appended;
  return added;
end
$$;

-- What the calls of an execution used and cost, by the rule of domain/usage.Total: the row's token_count and cost_usd,
-- and the metadata that tells more. NULL instead of 0 where it is not known; of a run that nobody saw to its end, that
-- holds of one without any call too.
create or replace function flowledger.usage_total(
  execution uuid, out token_count bigint, out cost_usd numeric, out metadata jsonb
)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with sums as (
    select count(*) as calls,
           count(*) filter (where status = 'failed') as failed_calls,
           count(*) filter (where status = 'completed' and input_tokens is null) as calls_without_usage,
           count(*) filter (where status = 'unknown' and input_tokens is null) as calls_without_end,
           count(input_tokens) as reported,
           coalesce(sum(input_tokens), 0)::bigint as input_tokens,
           coalesce(sum(cached_input_tokens), 0)::bigint as cached_input_tokens,
           coalesce(sum(cache_write_tokens), 0)::bigint as cache_write_tokens,
           coalesce(sum(output_tokens), 0)::bigint as output_tokens,
           coalesce(sum(reasoning_tokens), 0)::bigint as reasoning_tokens,
           coalesce(sum(usage.cost_usd), 0) as priced_usd,
           array_agg(distinct model collate "C" order by model collate "C")
             filter (where input_tokens is not null and usage.cost_usd is null) as unpriced_models,
           array_agg(distinct model collate "C" order by model collate "C")
             filter (where input_tokens is null and status <> 'failed') as unreported_models,
           array_agg(distinct ((price ->> 'source') || ' ' || (price ->> 'version')) collate "C"
                     order by ((price ->> 'source') || ' ' || (price ->> 'version')) collate "C")
             filter (where usage.cost_usd is not null) as prices
    from flowledger.usage as usage
    where execution_id = execution
  ), judged as (
    select sums.*, reported = 0 and calls_without_usage + calls_without_end > 0 as is_silent from sums
  )
  select case when not is_silent and calls > 0 then input_tokens + output_tokens end,
         case when not is_silent and calls > 0 and unpriced_models is null and calls_without_usage = 0
              then priced_usd end,
         case when calls > 0 then jsonb_strip_nulls(jsonb_build_object(
           'usage', jsonb_build_object(
             'input_tokens', input_tokens, 'cached_input_tokens', cached_input_tokens,
             'cache_write_tokens', cache_write_tokens, 'output_tokens', output_tokens,
             'reasoning_tokens', reasoning_tokens, 'calls', calls, 'failed_calls', failed_calls,
             'calls_without_usage', calls_without_usage, 'calls_without_end', calls_without_end),
           'exact_cost_usd', case when reported > 0 then trim_scale(priced_usd)::text end,
           'unpriced_models', to_jsonb(unpriced_models),
           'unreported_models', to_jsonb(unreported_models),
           'prices', to_jsonb(prices)))
         else '{}' end
  from judged
$$;

-- Before the row of a lost run is written: calls that its timeline saw begin and nobody saw end are calls too, and so are
-- those that room was set aside for before their beginning was written. What the timeline holds came from the flow's own
-- process and may be anything.
create or replace function flowledger.note_lost_calls(execution uuid) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  with begun as (
    select flowledger.count_of(events.fields -> 'call') as number, events.*
    from flowledger.timeline as events
    where events.execution_id = execution and events.kind = 'llm_started' and events.fields ? 'call'
  ), reserved as (
    select * from flowledger.reservations where execution_id = execution
  ), lost as (
    select coalesce(begun.number, reserved.number) as number, begun.sequence, begun.fields,
           coalesce(begun.name, 'unknown') as model, coalesce(begun.at, reserved.reserved_at) as at,
           reserved.usd as estimated_usd, reserved.tokens as estimated_tokens
    from begun
    full join reserved on reserved.number = begun.number
  ), noted as (
    insert into flowledger.usage as usage (
      execution_id, number, sequence, call_id, status, model, provider, step, crew, agent, task, started_at, retries,
      estimated_usd, estimated_tokens
    )
    select execution, lost.number, lost.sequence, coalesce(lost.fields ->> 'call_id', ''), 'unknown', lost.model,
           coalesce(lost.fields ->> 'provider', 'unknown'), lost.fields ->> 'method', lost.fields ->> 'crew_name',
           lost.fields ->> 'agent_role', lost.fields ->> 'task_name', lost.at,
           coalesce(flowledger.count_of(lost.fields -> 'retries'), 0), lost.estimated_usd, lost.estimated_tokens
    from lost
    where lost.number is not null
    on conflict do nothing
    returning usage.*
  )
  insert into flowledger.unfolded_spending (
    day, flow_id, executed_by, execution_mode, board_meeting_id, model, calls, unknown_calls, estimated_usd,
    estimated_tokens
  )
  select (noted.started_at at time zone 'UTC')::date, ledger.flow_id, ledger.executed_by, ledger.execution_mode,
         ledger.board_meeting_id, noted.model, count(*), count(*), coalesce(sum(noted.estimated_usd), 0),
         coalesce(sum(noted.estimated_tokens), 0)
  from noted
  join public.crewai_flow_executions as ledger on ledger.id = noted.execution_id
  group by 1, ledger.flow_id, ledger.executed_by, ledger.execution_mode, ledger.board_meeting_id, noted.model
$$;

-- Sets prices of the team, all or none, and answers how many are new or changed. `given` is a list of rows of
-- flowledger.prices as JSON; a provider or a beginning that is left out is that for all.
create or replace function flowledger.set_prices(given jsonb) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  changed bigint;
begin
  insert into flowledger.prices as known (
    model, provider, since, input_usd, output_usd, cached_input_usd, cache_write_usd, reasoning_usd, call_usd, set_by
  )
  select price.model, coalesce(price.provider, ''), coalesce(price.since, '-infinity'), price.input_usd,
         price.output_usd, price.cached_input_usd, price.cache_write_usd, price.reasoning_usd,
         coalesce(price.call_usd, 0), flowledger.caller()
  from jsonb_to_recordset(given) as price (
    model text, provider text, since timestamptz, input_usd numeric, output_usd numeric, cached_input_usd numeric,
    cache_write_usd numeric, reasoning_usd numeric, call_usd numeric)
  on conflict (model, provider, since) do update
  set input_usd = excluded.input_usd, output_usd = excluded.output_usd, cached_input_usd = excluded.cached_input_usd,
      cache_write_usd = excluded.cache_write_usd, reasoning_usd = excluded.reasoning_usd, call_usd = excluded.call_usd,
      set_by = excluded.set_by, set_at = excluded.set_at
  where (known.input_usd, known.output_usd, known.cached_input_usd, known.cache_write_usd, known.reasoning_usd,
         known.call_usd)
        is distinct from
        (excluded.input_usd, excluded.output_usd, excluded.cached_input_usd, excluded.cache_write_usd,
         excluded.reasoning_usd, excluded.call_usd);
  get diagnostics changed = row_count;
  return changed;
end
$$;

-- Forgets one price of the team. Answers whether there was one. Calls that it priced keep it.
create or replace function flowledger.remove_price(model text, provider text, since timestamptz) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from flowledger.prices as prices
  where prices.model = remove_price.model
    and prices.provider = coalesce(remove_price.provider, '')
    and prices.since = coalesce(remove_price.since, '-infinity');
  return found;
end
$$;

-- Notes what calls of ended executions cost at other prices than they count with now, and what that adds to what was
-- spent. What costs the same is left alone, so repeating it adds nothing. Answers how many executions cost something else.
create or replace function flowledger.reprice(
  executions uuid[], numbers integer[], prices jsonb[], costs numeric[]
) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  changed uuid[];
begin
  -- One repricing at a time, so that no difference is taken twice.
  perform pg_advisory_xact_lock(hashtextextended('flowledger.reprice', 0));

  with ended as (
    select ledger.id, ledger.flow_id, ledger.executed_by, ledger.execution_mode, ledger.board_meeting_id
    from public.crewai_flow_executions as ledger
    where ledger.id = any (executions) and flowledger.is_terminal(ledger.status)
    -- What is being pruned at this moment is left out; waiting for it could deadlock.
    for key share skip locked
  ), other as (
    select usage.execution_id, usage.number, usage.model, usage.started_at, given.price, given.cost_usd,
           coalesce(repriced.cost_usd, usage.cost_usd) as counted_usd
    from unnest(executions, numbers, prices, costs) as given (execution_id, number, price, cost_usd)
    join ended on ended.id = given.execution_id
    join flowledger.usage as usage using (execution_id, number)
    left join flowledger.repriced_calls as repriced using (execution_id, number)
    where usage.input_tokens is not null
      and given.cost_usd is distinct from coalesce(repriced.cost_usd, usage.cost_usd)
  ), noted as (
    insert into flowledger.repriced_calls as known (execution_id, number, price, cost_usd)
    select other.execution_id, other.number, other.price, other.cost_usd from other
    on conflict (execution_id, number) do update set price = excluded.price, cost_usd = excluded.cost_usd
  ), counted as (
    insert into flowledger.unfolded_spending (
      day, flow_id, executed_by, execution_mode, board_meeting_id, model, unpriced_calls, repriced_usd
    )
    select (other.started_at at time zone 'UTC')::date, ended.flow_id, ended.executed_by, ended.execution_mode,
           ended.board_meeting_id, other.model, -count(*) filter (where other.counted_usd is null),
           sum(other.cost_usd - coalesce(other.counted_usd, 0))
    from other
    join ended on ended.id = other.execution_id
    group by 1, ended.flow_id, ended.executed_by, ended.execution_mode, ended.board_meeting_id, other.model
  )
  select array_agg(distinct other.execution_id) into changed from other;

  insert into flowledger.repricings (execution_id, repriced_by, old_usd, new_usd, prices)
  select one.execution_id, flowledger.caller(), original.cost_usd,
         -- By the rule of usage_total, which answers without tokens where nothing is known at all.
         case when original.token_count is not null and latest.is_known then latest.priced_usd end,
         latest.prices
  from unnest(changed) as one (execution_id)
  cross join lateral flowledger.usage_total(one.execution_id) as original
  cross join lateral (
    select coalesce(sum(coalesce(repriced.cost_usd, usage.cost_usd)), 0) as priced_usd,
           bool_and(coalesce(repriced.cost_usd, usage.cost_usd) is not null
                    or usage.input_tokens is null and usage.status <> 'completed') as is_known,
           jsonb_object_agg(usage.model, repriced.price order by usage.number)
             filter (where repriced.price is not null) as prices
    from flowledger.usage as usage
    left join flowledger.repriced_calls as repriced using (execution_id, number)
    where usage.execution_id = one.execution_id
  ) as latest;
  return coalesce(cardinality(changed), 0);
end
$$;
