-- Migration 0003, 2026-11-27. May be pasted into an SQL editor, and repeated.
--
-- Usage of LLM calls, prices, spending, budgets and failures. What each is for stands in the schema's own files.

-- All at the beginning, so that whoever is in the middle of a step is found before anything has changed. Readers of the
-- ledger are not held up.
lock table public.crewai_flow_executions in exclusive mode;
lock table flowledger.timeline in access exclusive mode;

-- =====================================================================================================================
-- 50_lifecycle.sql

create or replace function public.update_flow_execution_count() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  queue_limit bigint := (select (value #>> '{}')::bigint from flowledger.settings where name = 'queue_limit');
  used_up text;
  actor_before text;
begin
  if new.status is distinct from 'pending'
     or new.execution_mode is null
     or num_nonnulls(new.output_state, new.error_message, new.error_stack, new.error_type,
                     new.completed_at, new.duration_ms, new.token_count, new.cost_usd) > 0 then
    raise exception 'an execution is born pending, with a mode and without an outcome'
      using errcode = 'FL001', hint = 'Insert flow_id, execution_key, input_state, board_meeting_id, executed_by and metadata only.';
  end if;

  if jsonb_typeof(new.input_state) <> 'object' then
    raise exception 'input_state must be a JSON object, not %', jsonb_typeof(new.input_state)
      using errcode = 'FL001', hint = 'Name each input: {"topic": "..."}.';
  end if;

  if jsonb_typeof(new.metadata) <> 'object' then
    raise exception 'metadata must be a JSON object, not %', jsonb_typeof(new.metadata)
      using errcode = 'FL001';
  end if;

  if new.metadata ? 'timeout_seconds' and flowledger.timeout_of(new.metadata) is null then
    raise exception 'metadata.timeout_seconds must be a number from 0.001 to 2147483, not %', new.metadata -> 'timeout_seconds'
      using errcode = 'FL001';
  end if;

  if new.metadata ? 'queue_seconds' and flowledger.seconds_of(new.metadata -> 'queue_seconds') is null then
    raise exception 'metadata.queue_seconds must be a number from 0.001 to 2147483, not %', new.metadata -> 'queue_seconds'
      using errcode = 'FL001';
  end if;

  if new.metadata ? 'priority' and flowledger.priority_of(new.metadata) is null then
    raise exception 'metadata.priority must be a whole number from -100 to 100, not %', new.metadata -> 'priority'
      using errcode = 'FL001';
  end if;

  if new.metadata ? 'budget_usd' and flowledger.amount_of(new.metadata -> 'budget_usd') is null then
    raise exception 'metadata.budget_usd must be an amount of USD from 0 up, not %', new.metadata -> 'budget_usd'
      using errcode = 'FL001';
  end if;

  if new.metadata ? 'budget_tokens'
     and flowledger.amount_of(new.metadata -> 'budget_tokens') % 1 is distinct from 0 then
    raise exception 'metadata.budget_tokens must be a whole number of tokens from 0 up, not %', new.metadata -> 'budget_tokens'
      using errcode = 'FL001';
  end if;

  if new.metadata ? 'on_budget' and coalesce(new.metadata ->> 'on_budget', '') not in ('stop', 'warn') then
    raise exception 'metadata.on_budget must be "stop" or "warn", not %', new.metadata -> 'on_budget'
      using errcode = 'FL001';
  end if;

  -- Foreign keys see past row-level security. A flow that the caller may not see is answered as one that is not there.
  -- A draft is answered so too: no worker runs it.
  if not exists (select from public.crewai_flows where id = new.flow_id and status = 'active') then
    raise exception 'insert or update on table "crewai_flow_executions" violates foreign key constraint "crewai_flow_executions_flow_id_fkey"'
      using errcode = 'foreign_key_violation',
            -- To those under row-level security, Postgres itself does not repeat the key.
            detail = 'Key is not present in table "crewai_flows".',
            schema = 'public', table = 'crewai_flow_executions', constraint = 'crewai_flow_executions_flow_id_fkey';
  end if;

  if queue_limit < 1 or exists (select from flowledger.queue offset queue_limit - 1 limit 1) then
    raise exception 'the queue is full: % executions are waiting', queue_limit
      using errcode = 'FL006', detail = queue_limit::text, hint = 'Start more workers, or raise queue_limit in flowledger.settings.';
  end if;

  if exists (select from flowledger.budgets) then
    used_up := flowledger.used_up(new.flow_id, new.executed_by);
    -- Nobody is there to be told of a start by schedule or trigger: it leaves a row that says so, below.
    if used_up is not null and new.execution_mode = 'manual' then
      raise exception '%', used_up
        using errcode = 'FL007', hint = 'Wait for the next window, or ask an operator to raise it: flowledger budgets list.';
    end if;
  end if;

  insert into flowledger.uncounted_executions (flow_id, born_at) values (new.flow_id, clock_timestamp());
  insert into flowledger.queue (execution_id, flow_id, executed_by, priority, expires_at)
  values (
    new.id, new.flow_id, new.executed_by, coalesce(flowledger.priority_of(new.metadata), 0),
    clock_timestamp() + make_interval(secs => coalesce(
      flowledger.seconds_of(new.metadata -> 'queue_seconds'),
      (select queue_seconds from flowledger.flow_controls where flow_id = new.flow_id)))
  );
  if new.metadata ? 'rerun_of' then
    perform flowledger.link_rerun(new);
  end if;
  insert into flowledger.transitions (execution_id, to_status, actor)
  values (new.id, new.status, flowledger.caller());

  if used_up is not null then
    actor_before := coalesce(current_setting('flowledger.actor', true), '');
    perform set_config('flowledger.actor', 'reaper', true);
    update public.crewai_flow_executions as executions
    set status = 'failed', error_type = 'BudgetExceeded', error_message = 'It did not start: ' || used_up || '.'
    where executions.id = new.id;
    perform set_config('flowledger.actor', actor_before, true);
    return null;
  end if;

  -- A notification makes commits wait for one another, so only a worker that found nothing to do is woken.
  if exists (select from flowledger.workers where waiting) then
    notify flowledger_queue;
  end if;

  return null;
end
$$;

create or replace function public.calculate_execution_duration() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  lease flowledger.leases;
begin
  if flowledger.is_terminal(old.status) then
    if new is distinct from old then
      raise exception 'execution % ended as % and is frozen', old.id, old.status using errcode = 'FL004';
    end if;
    return null;
  end if;

  if (new.id, new.flow_id, new.execution_key, new.executed_by, new.execution_mode, new.input_state)
     is distinct from
     (old.id, old.flow_id, old.execution_key, old.executed_by, old.execution_mode, old.input_state) then
    raise exception 'what identifies execution % never changes', old.id
      using errcode = 'FL003', detail = 'id, flow_id, execution_key, executed_by, execution_mode, input_state';
  end if;

  if new.cost_usd < 0 or new.cost_usd = 'NaN' or new.token_count < 0 then
    raise exception 'execution %: cost and tokens are counted from 0 up', old.id using errcode = 'FL002';
  end if;

  if new.status is not distinct from old.status then
    return new;
  end if;

  if not flowledger.edge_is_legal(old.status, new.status) then
    raise exception 'execution % cannot go from % to %', old.id, old.status, coalesce(new.status, 'NULL')
      using errcode = 'FL002';
  end if;

  if old.status = 'pending' then
    delete from flowledger.queue where execution_id = new.id;
  end if;

  if flowledger.is_terminal(new.status) then
    delete from flowledger.leases where execution_id = new.id returning * into lease;
    new.completed_at = greatest(clock_timestamp(), new.started_at);
    -- What never started has no duration.
    new.duration_ms = case old.status
      when 'running' then least(extract(epoch from new.completed_at - new.started_at) * 1000, 2147483647)::integer
    end;
    if lease.execution_id is not null then
      perform flowledger.announce_free_place(new.flow_id);
    end if;
    if old.status = 'running' then
      delete from flowledger.reservations where execution_id = new.id;
    end if;
    perform flowledger.count_ended(new);
    if new.status in ('failed', 'timeout') then
      perform flowledger.note_failure(new);
    end if;
  else
    select * into lease from flowledger.leases where execution_id = new.id;
  end if;

  insert into flowledger.transitions (execution_id, from_status, to_status, fence, worker_id, actor, reason)
  values (new.id, old.status, new.status, lease.fence, lease.worker_id,
          coalesce(nullif(current_setting('flowledger.actor', true), ''), flowledger.caller()), new.error_type);
  return new;
end
$$;

-- Ends running executions that nobody holds: no lease, or one that ended more than `grace` ago by this server's clock.
-- What was wished cancelled is cancelled, what is past its deadline is a timeout, and for the rest nobody knows.
create or replace function flowledger.reap(grace interval, most integer default 100)
returns table (execution_id uuid, status text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  orphan uuid;
  lease flowledger.leases;
  verdict text;
  asked jsonb;
  used record;
begin
  perform set_config('flowledger.actor', 'reaper', true);
  for orphan in
    select executions.id
    from public.crewai_flow_executions as executions
    left join flowledger.leases as leases on leases.execution_id = executions.id
    where executions.status = 'running'
      and (leases.execution_id is null or leases.expires_at < clock_timestamp() - grace)
    -- The order in which renewals lock leases.
    order by executions.id
    limit most
    for update of executions skip locked
  loop
    -- The holder may have renewed since; with the lease locked it cannot.
    select leases.* into lease from flowledger.leases as leases where leases.execution_id = orphan for update;
    continue when lease.expires_at >= clock_timestamp() - grace;

    verdict := case
      when exists (select from flowledger.cancel_wishes as wishes where wishes.execution_id = orphan) then 'cancelled'
      when lease.deadline_at <= clock_timestamp() then 'timeout'
      else 'failed'
    end;
    perform flowledger.note_lost_calls(orphan);
    select * into used from flowledger.usage_total(orphan);
    select executions.metadata into asked from public.crewai_flow_executions as executions where executions.id = orphan;
    update public.crewai_flow_executions as executions
    set status = verdict,
        -- least() alone would make the bound of what is not known.
        token_count = case when used.token_count is not null then least(used.token_count, 2147483647) end,
        cost_usd = case when used.cost_usd is not null then least(used.cost_usd, 999999.9999) end,
        metadata = coalesce(executions.metadata, '{}') || used.metadata,
        error_type = case verdict when 'cancelled' then 'Cancelled' when 'timeout' then 'Timeout' else 'WorkerLost' end,
        error_message = 'The worker that ran this execution stopped renewing its lease. '
          || 'How the flow ended is not known; its effects may have happened.'
    where executions.id = orphan;
    perform flowledger.retry_if_due(orphan, asked, how_it_ended_is_known => false);
    return query select orphan, verdict;
  end loop;

  -- A worker is heard of every quarter of a lease, and no lease is longer than an hour.
  delete from flowledger.workers as workers where workers.seen_at < clock_timestamp() - interval '1 hour';
end
$$;

-- What an error type means for a retry: 'hopeless' fails the same way again; after an 'unknown' end the effects may have
-- happened; 'unstarted' code did not run; 'died' is an end that the flow did not choose; all else is 'raised' by the flow.
create or replace function flowledger.retry_class(error_type text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when error_type in ('InvalidInput', 'FlowGone', 'OutputNotStorable', 'Cancelled', 'QueueTimeout', 'BudgetExceeded') then 'hopeless'
    when error_type in ('WorkerLost', 'WorkerStopped', 'WorkerFault', 'LeaseLost') then 'unknown'
    when error_type in ('ProcessNotStarted') then 'unstarted'
    when error_type in ('ProcessKilled', 'ProcessExited', 'MemoryLimit', 'ProcessLimit', 'FramesUnreadable', 'Timeout')
      then 'died'
    else 'raised'
  end
$$;

-- Follows an execution that failed with a new one, if its flow's policy says so. `asked` is the metadata it was born with.
-- An end that nobody knows is repeated for flows only that call themselves idempotent; a death, or a timeout, where
-- `retry_on` names it.
create or replace function flowledger.retry_if_due(execution uuid, asked jsonb, how_it_ended_is_known boolean) returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  ended public.crewai_flow_executions;
  policy flowledger.flow_controls;
  class text;
  is_named boolean;
  retries_before integer;
  pause interval;
  fresh uuid;
begin
  select executions.* into ended from public.crewai_flow_executions as executions where executions.id = execution;
  select controls.* into policy from flowledger.flow_controls as controls where controls.flow_id = ended.flow_id;
  if ended.status not in ('failed', 'timeout') or coalesce(policy.retries, 0) = 0 then
    return null;
  end if;

  retries_before := coalesce(
    (select reruns.retries from flowledger.reruns as reruns where reruns.execution_id = execution), 0);
  class := flowledger.retry_class(ended.error_type);
  -- ReadTimeout names httpx.ReadTimeout too.
  is_named := coalesce(
    ended.error_type = any (policy.retry_on) or substring(ended.error_type from '[^.]+$') = any (policy.retry_on), false);
  if retries_before >= policy.retries
     or class = 'hopeless'
     or (class = 'unknown' or not how_it_ended_is_known) and not policy.idempotent
     or class = 'died' and not is_named
     or class = 'raised' and not (is_named or policy.retry_on = '{}') then
    return null;
  end if;

  pause := make_interval(secs => least(policy.retry_seconds * 2 ^ retries_before, 86400) * (1 + random() / 4));
  -- A full queue, a budget that is used up, or a flow that is not active any more, must not undo the outcome that is being written.
  begin
    insert into public.crewai_flow_executions (
      flow_id, execution_key, input_state, board_meeting_id, executed_by, execution_mode, metadata
    )
    select ended.flow_id, flowledger.execution_key(flows.flow_key), ended.input_state, ended.board_meeting_id,
           ended.executed_by, ended.execution_mode,
           coalesce(asked, '{}') || jsonb_build_object('rerun_of', ended.id)
    from public.crewai_flows as flows
    where flows.id = ended.flow_id
    returning id into fresh;
  exception when sqlstate 'FL001' or sqlstate 'FL006' or sqlstate 'FL007' or foreign_key_violation then
    return null;
  end;

  update flowledger.reruns as reruns set kind = 'retry', retries = retries_before + 1 where reruns.execution_id = fresh;
  -- The pause is not part of the time that it may wait.
  update flowledger.queue as queue
  set run_after = clock_timestamp() + pause, expires_at = queue.expires_at + pause
  where queue.execution_id = fresh;
  return fresh;
end
$$;

-- =====================================================================================================================
-- 60_timeline.sql

alter table flowledger.timeline add column if not exists parent integer, add column if not exists began integer;
comment on table flowledger.timeline is 'Events of an execution: steps, LLM calls, tool calls and what else happens inside it.';
comment on column flowledger.timeline.parent is 'Sequence of the event with which the enclosing step or call began. NULL: none.';
comment on column flowledger.timeline.began is 'Of an end: the sequence of its beginning. NULL: this is a beginning, or a moment.';

-- All append what belongs to executions that are still held under the given fence, and leave out the rest. Repeating a
-- call adds nothing, so that a lost answer may be retried.
create or replace function flowledger.append_events(
  executions uuid[], fences bigint[], sequences integer[], parents integer[], begans integer[], ats timestamptz[],
  kinds text[], names text[], fields jsonb[]
) returns bigint
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  with appended as (
    insert into flowledger.timeline (execution_id, sequence, parent, began, at, kind, name, fields)
    select given.execution_id, given.sequence, given.parent, given.began, given.at, given.kind, given.name, given.fields
    from unnest(executions, fences, sequences, parents, begans, ats, kinds, names, fields)
      as given (execution_id, fence, sequence, parent, began, at, kind, name, fields)
    join flowledger.leases as leases using (execution_id, fence)
    on conflict do nothing
    returning 1
  )
  select count(*) from appended
$$;

-- As workers of the version before call it.
create or replace function flowledger.append_timeline(
  executions uuid[], fences bigint[], sequences integer[], ats timestamptz[], kinds text[], names text[], fields jsonb[]
) returns bigint
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  with appended as (
    insert into flowledger.timeline (execution_id, sequence, at, kind, name, fields)
    select given.execution_id, given.sequence, given.at, given.kind, given.name, given.fields
    from unnest(executions, fences, sequences, ats, kinds, names, fields)
      as given (execution_id, fence, sequence, at, kind, name, fields)
    join flowledger.leases as leases using (execution_id, fence)
    on conflict do nothing
    returning 1
  )
  select count(*) from appended
$$;

-- =====================================================================================================================
-- 61_spending.sql

-- What was spent, by day: sums that stay when executions are pruned, and that a month of a million executions is read
-- from at once. New amounts are appended, and folded into the sums now and then, so that runs do not wait for each other.

create table if not exists flowledger.unfolded_spending (
  day                  date not null,
  flow_id              uuid not null,
  executed_by          uuid,
  execution_mode       text,
  board_meeting_id     uuid,
  model                text,
  executions           bigint not null default 0,
  failed               bigint not null default 0,
  calls                bigint not null default 0,
  failed_calls         bigint not null default 0,
  unknown_calls        bigint not null default 0,
  unpriced_calls       bigint not null default 0,
  input_tokens         bigint not null default 0,
  cached_input_tokens  bigint not null default 0,
  cache_write_tokens   bigint not null default 0,
  output_tokens        bigint not null default 0,
  reasoning_tokens     bigint not null default 0,
  cost_usd             numeric not null default 0,
  estimated_usd        numeric not null default 0,
  estimated_tokens     bigint not null default 0,
  repriced_usd         numeric not null default 0
) with (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);
comment on table flowledger.unfolded_spending is 'Amounts not yet added to flowledger.spending.';
comment on column flowledger.unfolded_spending.model is 'NULL: the end of an execution, not a call.';

create table if not exists flowledger.spending (
  dimension            text not null,
  day                  date not null,
  key                  text not null,
  executions           bigint not null default 0,
  failed               bigint not null default 0,
  calls                bigint not null default 0,
  failed_calls         bigint not null default 0,
  unknown_calls        bigint not null default 0,
  unpriced_calls       bigint not null default 0,
  input_tokens         bigint not null default 0,
  cached_input_tokens  bigint not null default 0,
  cache_write_tokens   bigint not null default 0,
  output_tokens        bigint not null default 0,
  reasoning_tokens     bigint not null default 0,
  cost_usd             numeric not null default 0,
  estimated_usd        numeric not null default 0,
  estimated_tokens     bigint not null default 0,
  repriced_usd         numeric not null default 0,
  constraint spending_pkey primary key (dimension, day, key),
  constraint dimension_is_known check (dimension in ('flow', 'user', 'model', 'mode', 'meeting'))
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
comment on table flowledger.spending is 'Executions, calls, tokens and money by UTC day, along five dimensions. Each holds the whole.';
comment on column flowledger.spending.day is 'Of a call: when it began. Of an execution: when it ended.';
comment on column flowledger.spending.key is 'Id of the flow, user or meeting, name of the model or mode. Empty: none.';
comment on column flowledger.spending.failed is 'Executions that ended as failed or timeout.';
comment on column flowledger.spending.unknown_calls is 'Calls that nobody reported tokens of, failed ones left out.';
comment on column flowledger.spending.unpriced_calls is
  'Calls whose tokens are known and whose price is not, not even by a later one: cost_usd and repriced_usd lack them.';
comment on column flowledger.spending.estimated_usd is
  'What was set aside for calls that nobody knows the cost of: it counts in windows and never as a cost.';
comment on column flowledger.spending.estimated_tokens is 'The same of calls that nobody reported tokens of.';
comment on column flowledger.spending.repriced_usd is 'What later prices add to cost_usd, or take from it.';
create index if not exists spending_of_key on flowledger.spending (dimension, key, day);

-- Amounts along each dimension, folded or not.
create or replace view flowledger.spending_now as
  select * from flowledger.spending
  union all
  select along.dimension, waiting.day,
         case along.dimension
           when 'flow' then waiting.flow_id::text
           when 'user' then coalesce(waiting.executed_by::text, '')
           when 'mode' then coalesce(waiting.execution_mode, '')
           when 'meeting' then coalesce(waiting.board_meeting_id::text, '')
           else coalesce(waiting.model, '')
         end,
         waiting.executions, waiting.failed, waiting.calls, waiting.failed_calls, waiting.unknown_calls,
         waiting.unpriced_calls, waiting.input_tokens, waiting.cached_input_tokens, waiting.cache_write_tokens,
         waiting.output_tokens, waiting.reasoning_tokens, waiting.cost_usd, waiting.estimated_usd,
         waiting.estimated_tokens, waiting.repriced_usd
  -- In this order, so that whoever asks for one dimension makes nothing of the others.
  from (values ('flow'), ('user'), ('mode'), ('meeting'), ('model')) as along (dimension)
  cross join flowledger.unfolded_spending as waiting;
comment on view flowledger.spending_now is 'flowledger.spending with what is not yet folded into it: sum over its rows.';

-- Adds what was appended to the sums. Any number of callers at a time; each amount is added once.
create or replace function flowledger.fold_spending(most integer default 10000) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  folded bigint;
begin
  with gone as (
    delete from flowledger.unfolded_spending
    where ctid = any (array(select ctid from flowledger.unfolded_spending limit most for update skip locked))
    returning *
  ), added as (
    insert into flowledger.spending as known (
      dimension, day, key, executions, failed, calls, failed_calls, unknown_calls, unpriced_calls, input_tokens,
      cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_usd, estimated_usd,
      estimated_tokens, repriced_usd
    )
    select along.dimension, gone.day, along.key, sum(gone.executions), sum(gone.failed), sum(gone.calls),
           sum(gone.failed_calls), sum(gone.unknown_calls), sum(gone.unpriced_calls), sum(gone.input_tokens),
           sum(gone.cached_input_tokens), sum(gone.cache_write_tokens), sum(gone.output_tokens),
           sum(gone.reasoning_tokens), sum(gone.cost_usd), sum(gone.estimated_usd), sum(gone.estimated_tokens),
           sum(gone.repriced_usd)
    from gone
    cross join lateral (values
      ('flow', gone.flow_id::text),
      ('user', coalesce(gone.executed_by::text, '')),
      ('mode', coalesce(gone.execution_mode, '')),
      ('meeting', coalesce(gone.board_meeting_id::text, '')),
      ('model', coalesce(gone.model, ''))
    ) as along (dimension, key)
    group by along.dimension, gone.day, along.key
    -- One order for all, so that callers cannot deadlock.
    order by along.dimension, gone.day, along.key
    on conflict (dimension, day, key) do update
    set executions = known.executions + excluded.executions,
        failed = known.failed + excluded.failed,
        calls = known.calls + excluded.calls,
        failed_calls = known.failed_calls + excluded.failed_calls,
        unknown_calls = known.unknown_calls + excluded.unknown_calls,
        unpriced_calls = known.unpriced_calls + excluded.unpriced_calls,
        input_tokens = known.input_tokens + excluded.input_tokens,
        cached_input_tokens = known.cached_input_tokens + excluded.cached_input_tokens,
        cache_write_tokens = known.cache_write_tokens + excluded.cache_write_tokens,
        output_tokens = known.output_tokens + excluded.output_tokens,
        reasoning_tokens = known.reasoning_tokens + excluded.reasoning_tokens,
        cost_usd = known.cost_usd + excluded.cost_usd,
        estimated_usd = known.estimated_usd + excluded.estimated_usd,
        estimated_tokens = known.estimated_tokens + excluded.estimated_tokens,
        repriced_usd = known.repriced_usd + excluded.repriced_usd
  )
  select count(*) into folded from gone;
  return folded;
end
$$;

-- Called at the end of an execution.
create or replace function flowledger.count_ended(ended public.crewai_flow_executions) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  insert into flowledger.unfolded_spending (
    day, flow_id, executed_by, execution_mode, board_meeting_id, executions, failed
  )
  values ((ended.completed_at at time zone 'UTC')::date, ended.flow_id, ended.executed_by, ended.execution_mode,
          ended.board_meeting_id, 1, (ended.status in ('failed', 'timeout'))::integer)
$$;

-- =====================================================================================================================
-- 62_budgets.sql

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

-- =====================================================================================================================
-- 63_usage.sql

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

-- =====================================================================================================================
-- 64_failures.sql

-- What failed, by fingerprint: the same error in the same place has the same one, whatever its message says.

create table if not exists flowledger.failures (
  execution_id  uuid primary key references public.crewai_flow_executions (id) on delete cascade,
  fingerprint   text not null,
  failed_at     timestamptz not null,
  flow_id       uuid not null,
  flow_version  integer,
  error_type    text,
  place         text,
  message       text,
  token_count   bigint,
  cost_usd      numeric
);
comment on table flowledger.failures is 'Executions that ended as failed or timeout, by what went wrong.';
comment on column flowledger.failures.fingerprint is 'Of the error''s type and the project''s own frames; where there are none, of the type and the flow.';
comment on column flowledger.failures.place is 'The innermost frame of the project''s own, as file:function. NULL: none is known.';
comment on column flowledger.failures.cost_usd is
  'Exact, of the calls with a known cost: what was wasted is no less. NULL: of none of them.';
comment on column flowledger.failures.message is 'The first line, at most 500 characters.';
create index if not exists failures_by_time on flowledger.failures (failed_at);
create index if not exists failures_by_fingerprint on flowledger.failures (fingerprint, failed_at);

-- Where no frame of the project's own is known.
create or replace function flowledger.fingerprint_of(flow uuid, error_type text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select left(encode(sha256(convert_to(flow::text || coalesce(error_type, ''), 'UTF8')), 'hex'), 12)
$$;

-- Called at the end of an execution that failed or ran out of time. Its metadata may hold what its user gave.
create or replace function flowledger.note_failure(ended public.crewai_flow_executions) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  insert into flowledger.failures (
    execution_id, fingerprint, failed_at, flow_id, flow_version, error_type, place, message, token_count, cost_usd
  )
  values (
    ended.id,
    coalesce(left(ended.metadata ->> 'error_fingerprint', 64),
             flowledger.fingerprint_of(ended.flow_id, ended.error_type)),
    ended.completed_at, ended.flow_id, flowledger.count_of(ended.metadata -> 'flow_version'), ended.error_type,
    left(ended.metadata ->> 'error_place', 500),
    left(split_part(ltrim(coalesce(ended.error_message, ''), E' \n\r\t'), E'\n', 1), 500),
    ended.token_count,
    coalesce((select sum(usage.cost_usd) from flowledger.usage as usage where usage.execution_id = ended.id),
             ended.cost_usd))
  on conflict do nothing
$$;

-- =====================================================================================================================
-- Executions that ended before

do $$
begin
  if exists (select from flowledger.schema_migrations where version = 3) then
    return;
  end if;
  insert into flowledger.failures (
    execution_id, fingerprint, failed_at, flow_id, error_type, message, token_count, cost_usd
  )
  select ended.id, flowledger.fingerprint_of(ended.flow_id, ended.error_type),
         coalesce(ended.completed_at, ended.started_at, now()), ended.flow_id, ended.error_type,
         left(split_part(ltrim(coalesce(ended.error_message, ''), E' \n\r\t'), E'\n', 1), 500), ended.token_count,
         ended.cost_usd
  from public.crewai_flow_executions as ended
  where ended.status in ('failed', 'timeout')
  on conflict do nothing;
  insert into flowledger.unfolded_spending (
    day, flow_id, executed_by, execution_mode, board_meeting_id, executions, failed
  )
  select (coalesce(ended.completed_at, ended.started_at, now()) at time zone 'UTC')::date, ended.flow_id,
         ended.executed_by, ended.execution_mode, ended.board_meeting_id, count(*),
         count(*) filter (where ended.status in ('failed', 'timeout'))
  from public.crewai_flow_executions as ended
  where flowledger.is_terminal(ended.status)
  group by 1, 2, 3, 4, 5;
end
$$;

-- =====================================================================================================================
-- 90_policies.sql

alter table flowledger.usage enable row level security;
alter table flowledger.prices enable row level security;
alter table flowledger.repricings enable row level security;
alter table flowledger.repriced_calls enable row level security;
alter table flowledger.unfolded_spending enable row level security;
alter table flowledger.spending enable row level security;
alter table flowledger.budgets enable row level security;
alter table flowledger.reservations enable row level security;
alter table flowledger.failures enable row level security;

drop policy if exists usage_read_own on flowledger.usage;
create policy usage_read_own on flowledger.usage for select using (
  (select flowledger.is_operator())
  or exists (select from public.crewai_flow_executions as executions where executions.id = execution_id));
drop policy if exists repricings_read_own on flowledger.repricings;
create policy repricings_read_own on flowledger.repricings for select using (
  (select flowledger.is_operator())
  or exists (select from public.crewai_flow_executions as executions where executions.id = execution_id));
drop policy if exists repriced_calls_read_own on flowledger.repriced_calls;
create policy repriced_calls_read_own on flowledger.repriced_calls for select using (
  (select flowledger.is_operator())
  or exists (select from public.crewai_flow_executions as executions where executions.id = execution_id));
drop policy if exists failures_read_own on flowledger.failures;
create policy failures_read_own on flowledger.failures for select using (
  (select flowledger.is_operator())
  or exists (select from public.crewai_flow_executions as executions where executions.id = execution_id));
drop policy if exists unfolded_spending_read on flowledger.unfolded_spending;
create policy unfolded_spending_read on flowledger.unfolded_spending for select using ((select flowledger.is_operator()));
drop policy if exists spending_read on flowledger.spending;
create policy spending_read on flowledger.spending for select using ((select flowledger.is_operator()));
drop policy if exists budgets_read on flowledger.budgets;
create policy budgets_read on flowledger.budgets for select using ((select flowledger.is_operator()));
drop policy if exists reservations_read on flowledger.reservations;
create policy reservations_read on flowledger.reservations for select using ((select flowledger.is_operator()));
drop policy if exists prices_read on flowledger.prices;
create policy prices_read on flowledger.prices for select using (true);

-- A platform may have granted everything on new tables, and Postgres lets everybody execute new functions; what counts is
-- the list below.
revoke all on
  flowledger.usage, flowledger.prices, flowledger.repricings, flowledger.repriced_calls, flowledger.unfolded_spending,
  flowledger.spending, flowledger.spending_now, flowledger.budgets, flowledger.reservations, flowledger.failures
  from public, anon, authenticated, service_role;
revoke all on all sequences in schema flowledger from public, anon, authenticated, service_role;
revoke all on function
  flowledger.append_events(uuid[], bigint[], integer[], integer[], integer[], timestamptz[], text[], text[], jsonb[]),
  flowledger.append_usage(uuid[], bigint[], jsonb[]),
  flowledger.usage_total(uuid),
  flowledger.set_prices(jsonb),
  flowledger.remove_price(text, text, timestamptz),
  flowledger.reprice(uuid[], integer[], jsonb[], numeric[]),
  flowledger.reserve(uuid, bigint, integer, numeric, bigint),
  flowledger.release(uuid, integer),
  flowledger.windows(uuid, uuid),
  flowledger.set_budget(text, uuid, uuid, text, numeric, bigint, text),
  flowledger.remove_budget(bigint),
  flowledger.fold_spending(integer),
  flowledger.note_lost_calls(uuid),
  flowledger.used_up(uuid, uuid),
  flowledger.amount_of(jsonb),
  flowledger.count_of(jsonb),
  flowledger.fingerprint_of(uuid, text),
  flowledger.count_ended(public.crewai_flow_executions),
  flowledger.note_failure(public.crewai_flow_executions)
  from public, anon, authenticated, service_role;

grant select on flowledger.usage, flowledger.prices, flowledger.repricings, flowledger.repriced_calls, flowledger.failures
  to authenticated, service_role;
grant select on flowledger.unfolded_spending, flowledger.spending, flowledger.spending_now, flowledger.budgets,
  flowledger.reservations
  to service_role;
grant execute on function
  flowledger.append_events(uuid[], bigint[], integer[], integer[], integer[], timestamptz[], text[], text[], jsonb[]),
  flowledger.append_usage(uuid[], bigint[], jsonb[]),
  flowledger.usage_total(uuid),
  flowledger.set_prices(jsonb),
  flowledger.remove_price(text, text, timestamptz),
  flowledger.reprice(uuid[], integer[], jsonb[], numeric[]),
  flowledger.reserve(uuid, bigint, integer, numeric, bigint),
  flowledger.release(uuid, integer),
  flowledger.windows(uuid, uuid),
  flowledger.set_budget(text, uuid, uuid, text, numeric, bigint, text),
  flowledger.remove_budget(bigint),
  flowledger.fold_spending(integer)
  to service_role;

insert into flowledger.schema_migrations (version, name) values (3, 'accounting') on conflict do nothing;
