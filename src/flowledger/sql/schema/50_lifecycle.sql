-- The law of the six statuses, kept by the database itself.
--
--   births      update_flow_execution_count(), after insert: only a fresh pending row is born; it is counted and queued
--   edges       calculate_execution_duration(), before update: only legal steps; identity and terminal rows are frozen
--   claim       pending -> running, under a lease with a fence
--   renew       keeps leases, and tells the holder which executions it lost and which are wished cancelled
--   finish      running -> an outcome, by the holder of the fence
--   cancel      pending -> cancelled at once; running: a wish, which the holder carries out
--   reap        running without a live lease -> an outcome
--   expire      pending past its queue deadline -> timeout
--   retry       a failed execution, where its flow says so -> a new one beside it
--
-- Every function names its schemas and puts pg_temp last: with an empty search_path, a caller's temporary type named
-- "text" would come before the real one, and its check would run with the owner's rights.
--
-- Whatever changes a status, the update trigger keeps the side tables in step with it: it writes the transition, takes
-- the row from the queue and ends the lease. Lock order: ledger row, then queue, lease or wish, then the flow's controls,
-- then the flow. `claim` begins with the controls, and therefore waits for no row after them but its own worker's, which
-- is everybody's last.

create table if not exists flowledger.settings (
  name         text primary key,
  value        jsonb not null,
  description  text not null
);
comment on table flowledger.settings is 'Limits that the database itself enforces.';
insert into flowledger.settings (name, value, description) values
  ('queue_limit', '10000', 'Executions that may wait at one time; the next insert is refused (SQLSTATE FL006).')
on conflict do nothing;

create table if not exists flowledger.workers (
  id          uuid primary key,
  host        text not null,
  pid         integer not null,
  version     text not null,
  slots       integer not null,
  flow_ids    uuid[] not null default '{}',
  waiting     boolean not null default false,
  started_at  timestamptz not null default now(),
  seen_at     timestamptz not null default now()
) with (fillfactor = 50);
comment on table flowledger.workers is 'Processes that carry executions; one random id for each start.';
comment on column flowledger.workers.waiting is 'Found the queue empty and wants to be notified.';

create table if not exists flowledger.queue (
  execution_id  uuid primary key references public.crewai_flow_executions (id) on delete cascade,
  flow_id       uuid not null,
  priority      integer not null default 0,
  run_after     timestamptz not null default now(),
  place         bigint generated always as identity,
  executed_by   uuid,
  expires_at    timestamptz
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 200);
comment on table flowledger.queue is 'Pending executions, narrow, so that claiming stays fast behind any number of finished ones.';
comment on column flowledger.queue.priority is 'Higher starts sooner; within one priority, first come, first served.';
comment on column flowledger.queue.run_after is 'Not claimed before: the pause before a retry.';
comment on column flowledger.queue.expires_at is 'When waiting ends as timeout. NULL: never.';
create index if not exists queue_order on flowledger.queue (priority desc, place);
create index if not exists queue_expiry on flowledger.queue (expires_at) where expires_at is not null;

create sequence if not exists flowledger.fences;
comment on sequence flowledger.fences is 'Grows with each claim; a holder with an older fence can no longer finish.';

create table if not exists flowledger.leases (
  execution_id  uuid primary key references public.crewai_flow_executions (id) on delete cascade,
  fence         bigint not null unique default nextval('flowledger.fences'),
  worker_id     uuid not null,
  claimed_at    timestamptz not null,
  expires_at    timestamptz not null,
  deadline_at   timestamptz not null,
  flow_id       uuid,
  executed_by   uuid,
  constraint deadline_is_after_claim check (deadline_at > claimed_at)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 200);
comment on table flowledger.leases is 'Who runs what, and until when unless renewed. Heartbeats live here, never on the ledger row.';
comment on column flowledger.leases.deadline_at is 'When the execution''s timeout is reached.';
comment on column flowledger.leases.flow_id is 'With executed_by: what the limits of the flow count.';

create table if not exists flowledger.cancel_wishes (
  execution_id  uuid primary key references public.crewai_flow_executions (id) on delete cascade,
  wished_by     uuid,
  reason        text,
  wished_at     timestamptz not null default now()
);
comment on table flowledger.cancel_wishes is 'Running executions that their owner wants ended.';
comment on column flowledger.cancel_wishes.wished_by is 'NULL: an operator.';

create table if not exists flowledger.transitions (
  seq           bigint generated always as identity primary key,
  execution_id  uuid not null references public.crewai_flow_executions (id) on delete cascade,
  from_status   text,
  to_status     text not null,
  fence         bigint,
  worker_id     uuid,
  actor         text not null,
  reason        text,
  at            timestamptz not null default clock_timestamp()
);
comment on table flowledger.transitions is 'Every step of every execution, its birth included: audit trail and live feed.';
comment on column flowledger.transitions.from_status is 'NULL: the birth.';
comment on column flowledger.transitions.actor is 'worker, reaper, or who did it: the user''s id, else the database role.';
create index if not exists transitions_of_execution on flowledger.transitions (execution_id, seq);

create table if not exists flowledger.reruns (
  execution_id  uuid primary key references public.crewai_flow_executions (id) on delete cascade,
  of_execution  uuid not null references public.crewai_flow_executions (id) on delete cascade,
  kind          text not null default 'rerun',
  attempt       integer not null,
  retries       integer not null default 0,
  constraint kind_is_rerun_or_retry check (kind in ('rerun', 'retry')),
  constraint attempts_count_from_two check (attempt >= 2),
  constraint only_retries_are_counted check ((kind = 'retry') = (retries > 0))
);
comment on table flowledger.reruns is
  'Which execution repeats which. The earlier row is frozen, so the link that leads forward from it lives here.';
comment on column flowledger.reruns.kind is 'rerun: somebody asked; retry: the flow''s own policy.';
comment on column flowledger.reruns.attempt is 'The first execution is attempt 1.';
comment on column flowledger.reruns.retries is 'How many retries led here since somebody last asked.';
create index if not exists reruns_of_execution on flowledger.reruns (of_execution);
create unique index if not exists one_retry_of_each on flowledger.reruns (of_execution) where kind = 'retry';

create table if not exists flowledger.uncounted_executions (
  flow_id  uuid not null,
  born_at  timestamptz not null
) with (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);
comment on table flowledger.uncounted_executions is
  'Births not yet added to crewai_flows.execution_count: appended, so that inserts of one flow do not wait for one another.';


-- ---------------------------------------------------------------------------------------------------------------------
-- Births

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

-- A span of time given as a JSON number of seconds; NULL for anything that makes no sense.
create or replace function flowledger.seconds_of(given jsonb) returns double precision
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  -- Judged as numeric, which holds every JSON number: a double would overflow at 1e400. Far less than a millisecond would
  -- put a deadline on its own start. Nested, because only CASE keeps a cast from being tried too early.
  select case when jsonb_typeof(given) = 'number' then
    case when (given #>> '{}')::numeric between 0.001 and 2147483 then (given #>> '{}')::double precision end
  end
$$;

-- The execution's own timeout in seconds; NULL when it has none or one that makes no sense.
create or replace function flowledger.timeout_of(metadata jsonb) returns double precision
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select flowledger.seconds_of(metadata -> 'timeout_seconds')
$$;

-- The execution's own priority; NULL when it has none or one that makes no sense.
create or replace function flowledger.priority_of(metadata jsonb) returns integer
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case when jsonb_typeof(metadata -> 'priority') = 'number' then
    case when (metadata ->> 'priority')::numeric between -100 and 100 and (metadata ->> 'priority')::numeric % 1 = 0 then
      (metadata ->> 'priority')::numeric::integer
    end
  end
$$;

-- Remembers that the newborn repeats another execution: `metadata.rerun_of` names one of the same flow that whoever starts
-- it may see. One of somebody else's is answered as one that is not there.
create or replace function flowledger.link_rerun(newborn public.crewai_flow_executions) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  named text := newborn.metadata ->> 'rerun_of';
  earlier uuid;
begin
  if named ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
    select executions.id into earlier
    from public.crewai_flow_executions as executions
    where executions.id = named::uuid
      and executions.id <> newborn.id
      and executions.flow_id = newborn.flow_id
      and (executions.executed_by is not distinct from newborn.executed_by or flowledger.is_operator());
  end if;
  if earlier is null then
    raise exception 'metadata.rerun_of names no execution of this flow that you may repeat'
      using errcode = 'FL001', hint = 'Give the id of an earlier execution of your own, or leave it out.';
  end if;
  insert into flowledger.reruns (execution_id, of_execution, attempt)
  values (
    newborn.id, earlier,
    1 + coalesce((select reruns.attempt from flowledger.reruns as reruns where reruns.execution_id = earlier), 1)
  );
end
$$;

-- Who acts: a verified user, else the login role. Functions of this file name themselves through flowledger.actor.
create or replace function flowledger.caller() returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(auth.uid()::text, session_user::text)
$$;

drop trigger if exists flow_execution_counter on public.crewai_flow_executions;
create trigger flow_execution_counter
  after insert on public.crewai_flow_executions
  for each row execute function public.update_flow_execution_count();

-- Adds what was appended to the flows' counters. Any number of callers at a time; each birth is added once.
create or replace function flowledger.fold_execution_counts() returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  counted uuid[];
  added bigint[];
  last_born_at timestamptz[];
begin
  with gone as (
    delete from flowledger.uncounted_executions
    where ctid = any (array(select ctid from flowledger.uncounted_executions limit 10000 for update skip locked))
    returning flow_id, born_at
  ), births as (
    select gone.flow_id, count(*) as number, max(gone.born_at) as last_one from gone group by gone.flow_id
  )
  select array_agg(births.flow_id), array_agg(births.number), array_agg(births.last_one)
  into counted, added, last_born_at
  from births;

  perform flowledger.lock_flows(counted);
  update public.crewai_flows as flows
  set execution_count = coalesce(flows.execution_count, 0) + births.number,
      last_executed_at = greatest(flows.last_executed_at, births.last_one)
  from unnest(counted, added, last_born_at) as births (flow_id, number, last_one)
  where flows.id = births.flow_id;
  return (select coalesce(sum(one), 0) from unnest(added) as one);
end
$$;

-- Before counters change. One order for all callers, so that they cannot deadlock; and a statement of its own, because one
-- that locks a row and changes it would look for the version that it saw before it waited, and Postgres has whoever
-- waits for that row hold on to the old version.
create or replace function flowledger.lock_flows(wanted uuid[]) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  -- No key is changed: births of these flows need not wait.
  select from public.crewai_flows as flows where flows.id = any (wanted) order by flows.id for no key update
$$;


-- ---------------------------------------------------------------------------------------------------------------------
-- Edges

create or replace function flowledger.is_terminal(status text) returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select status in ('completed', 'failed', 'cancelled', 'timeout')
$$;

create or replace function flowledger.edge_is_legal(from_status text, to_status text) returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    case from_status
      when 'pending' then to_status in ('running', 'cancelled', 'timeout', 'failed')
      when 'running' then to_status in ('completed', 'failed', 'cancelled', 'timeout')
    end,
    false
  )
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
    perform flowledger.list_ended(new);
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

drop trigger if exists execution_duration_calculator on public.crewai_flow_executions;
create trigger execution_duration_calculator
  before update on public.crewai_flow_executions
  for each row execute function public.calculate_execution_duration();


-- A place under the flow's limits is free: workers that found nothing to do may look again.
create or replace function flowledger.announce_free_place(flow uuid) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (select from flowledger.flow_controls as controls
             where controls.flow_id = flow and num_nonnulls(controls.concurrency, controls.concurrency_per_user) > 0)
     and exists (select from flowledger.queue as queue where queue.flow_id = flow)
     and exists (select from flowledger.workers where waiting) then
    notify flowledger_queue;
  end if;
end
$$;


-- ---------------------------------------------------------------------------------------------------------------------
-- Claim and renew

-- Up to `slots` pending executions of the given flows become running: the highest priority first, then the oldest, and of
-- each flow no more than its controls allow. `timeouts` holds each flow's
-- timeout in seconds, in the order of `flows`; an execution's own timeout comes before it. `among`, unless NULL, narrows
-- the claim to these executions. Fewer rows than `slots` mean that the queue is empty: the worker is then marked as
-- waiting and must look once more before it sleeps, since a row committed in between has notified nobody.
create or replace function flowledger.claim(
  worker uuid, flows uuid[], timeouts double precision[], slots integer, lease interval, among uuid[] default null
) returns table (
  execution_id uuid, fence bigint, flow_id uuid, flow_key text, execution_key text, inputs jsonb, metadata jsonb,
  execution_mode text, executed_by uuid, board_meeting_id uuid, timeout_seconds double precision
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  unlimited uuid[];
  allowed uuid[];
  taken uuid[];
  now_ timestamptz;
begin
  perform set_config('flowledger.actor', 'worker', true);

  -- Counting what runs and taking more must not interleave, so one worker at a time claims of a flow with a limit.
  perform from flowledger.flow_controls as controls
  where controls.flow_id = any (flows) and num_nonnulls(controls.concurrency, controls.concurrency_per_user) > 0
  order by controls.flow_id
  for no key update;
  if found then
    allowed := array(
      select startable.execution_id
      from unnest(flows) as wanted (flow_id)
      cross join lateral flowledger.startable(wanted.flow_id, claim.slots, claim.among) as startable (execution_id));
  end if;

  unlimited := array(
    select wanted.flow_id
    from unnest(flows) as wanted (flow_id)
    left join flowledger.flow_controls as controls on controls.flow_id = wanted.flow_id
    where controls.paused_at is null and num_nonnulls(controls.concurrency, controls.concurrency_per_user) = 0);

  -- Both rows are locked without waiting, so a claim cannot deadlock with a cancel, which holds the ledger row first.
  taken := array(
    select queue.execution_id
    from flowledger.queue as queue
    join public.crewai_flow_executions as executions on executions.id = queue.execution_id
    where (queue.flow_id = any (unlimited) or queue.execution_id = any (allowed))
      and queue.run_after <= clock_timestamp()
      and (among is null or queue.execution_id = any (among))
    order by queue.priority desc, queue.place
    limit slots
    for update of queue, executions skip locked
  );
  now_ := clock_timestamp();

  update flowledger.workers as workers
  set waiting = cardinality(taken) < claim.slots, seen_at = now_
  where workers.id = worker and waiting is distinct from (cardinality(taken) < claim.slots);

  if cardinality(taken) = 0 then
    return;
  end if;

  insert into flowledger.leases (execution_id, flow_id, executed_by, worker_id, claimed_at, expires_at, deadline_at)
  select executions.id, executions.flow_id, executions.executed_by, worker, now_, now_ + lease,
         now_ + make_interval(
           secs => coalesce(flowledger.timeout_of(executions.metadata), greatest(limits.seconds, 0.001)))
  from public.crewai_flow_executions as executions
  join unnest(flows, timeouts) as limits (flow_id, seconds) on limits.flow_id = executions.flow_id
  where executions.id = any (taken)
  order by array_position(taken, executions.id);

  return query
  with started as (
    update public.crewai_flow_executions as executions
    set status = 'running', started_at = now_
    where executions.id = any (taken)
    returning executions.*
  )
  select started.id, leases.fence, started.flow_id, known.flow_key::text, started.execution_key::text,
         coalesce(started.input_state, '{}'), coalesce(started.metadata, '{}'), started.execution_mode::text,
         started.executed_by, started.board_meeting_id,
         extract(epoch from leases.deadline_at - leases.claimed_at)::double precision
  from started
  join flowledger.leases as leases on leases.execution_id = started.id
  join public.crewai_flows as known on known.id = started.flow_id
  order by array_position(taken, started.id);
end
$$;

-- The executions of a flow with limits that may start now, at most `most` of them. Only who holds the flow's controls
-- locked can rely on it.
create or replace function flowledger.startable(flow uuid, most integer, among uuid[]) returns setof uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  controls flowledger.flow_controls;
  free integer := most;
begin
  select known.* into controls from flowledger.flow_controls as known where known.flow_id = flow;
  if controls.paused_at is not null or num_nonnulls(controls.concurrency, controls.concurrency_per_user) = 0 then
    return;
  end if;
  if controls.concurrency is not null then
    free := least(most, controls.concurrency
                        - (select count(*) from flowledger.leases as leases where leases.flow_id = flow));
  end if;

  return query
  with waiting as (
    select queue.execution_id, queue.priority, queue.place,
           row_number() over (partition by queue.executed_by order by queue.priority desc, queue.place) as place_of_user,
           queue.executed_by
    from flowledger.queue as queue
    where queue.flow_id = flow
      and queue.run_after <= clock_timestamp()
      and (among is null or queue.execution_id = any (among))
  ), running as (
    select leases.executed_by, count(*) as executions
    from flowledger.leases as leases
    where leases.flow_id = flow
    group by leases.executed_by
  )
  select waiting.execution_id
  from waiting
  left join running on running.executed_by is not distinct from waiting.executed_by
  where controls.concurrency_per_user is null
     or waiting.place_of_user + coalesce(running.executions, 0) <= controls.concurrency_per_user
  order by waiting.priority desc, waiting.place
  limit greatest(free, 0);
end
$$;

-- Keeps the worker's leases for another `lease`. Answers with those it still holds, and the cancel wish of each; one
-- that is not answered is lost, and its child must die.
create or replace function flowledger.renew(
  worker uuid, executions uuid[], fences bigint[], lease interval
) returns table (execution_id uuid, fence bigint, cancel_wished boolean, cancel_reason text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  with held as (
    -- One order for all, so that renewals and reapers cannot deadlock.
    select leases.execution_id, leases.fence
    from flowledger.leases as leases
    join unnest(executions, fences) as mine (execution_id, fence) using (execution_id, fence)
    where leases.worker_id = worker
    order by leases.execution_id
    for update of leases
  ), renewed as (
    update flowledger.leases as leases
    set expires_at = clock_timestamp() + lease
    from held
    where leases.execution_id = held.execution_id
    returning leases.execution_id, leases.fence
  )
  select renewed.execution_id, renewed.fence, wishes.execution_id is not null, wishes.reason
  from renewed
  left join flowledger.cancel_wishes as wishes on wishes.execution_id = renewed.execution_id;
  -- Last, because a claim of the same worker may hold this row while it holds the controls of flows.
  update flowledger.workers as workers set seen_at = clock_timestamp() where workers.id = worker;
end
$$;


-- ---------------------------------------------------------------------------------------------------------------------
-- Outcomes

-- Writes the outcome if the row still runs under this fence. Answers 'ok'; 'dup' when this very outcome is stored
-- already because an earlier answer was lost; 'lost' when somebody else decided. `began_after_ms` moves started_at from
-- the claim to the flow's own start.
create or replace function flowledger.finish(
  execution uuid, fence bigint, status text, output_state jsonb, error_type text, error_message text, error_stack text,
  token_count integer, cost_usd numeric, began_after_ms integer, metadata jsonb
) returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  found_status text;
  flow uuid;
  asked jsonb;
begin
  if flowledger.is_terminal(finish.status) is not true then
    raise exception 'an execution does not end as %', coalesce(finish.status, 'NULL') using errcode = 'FL002';
  end if;

  perform set_config('flowledger.actor', 'worker', true);
  select executions.status, executions.flow_id, executions.metadata into found_status, flow, asked
  from public.crewai_flow_executions as executions where executions.id = execution for update;

  if flowledger.is_terminal(found_status) then
    return case when exists (
      select from flowledger.transitions as transitions
      where transitions.execution_id = execution and transitions.from_status = 'running'
        and transitions.to_status = finish.status and transitions.fence = finish.fence and transitions.actor = 'worker'
    ) then 'dup' else 'lost' end;
  end if;

  if not exists (select from flowledger.leases as leases
                 where leases.execution_id = execution and leases.fence = finish.fence) then
    return 'lost';
  end if;

  update public.crewai_flow_executions as executions
  set status = finish.status,
      output_state = finish.output_state,
      error_type = finish.error_type,
      error_message = finish.error_message,
      error_stack = finish.error_stack,
      token_count = finish.token_count,
      cost_usd = finish.cost_usd,
      started_at = executions.started_at + make_interval(secs => greatest(began_after_ms, 0) / 1000.0),
      metadata = coalesce(executions.metadata, '{}') || coalesce(finish.metadata, '{}')
  where executions.id = execution;
  perform flowledger.heed_crash(flow, error_type);
  perform flowledger.retry_if_due(execution, asked, how_it_ended_is_known => true);
  return 'ok';
end
$$;

-- Deaths by signal in a row pause the flow, until a new version of it comes or an operator resumes it. An end that says
-- nothing about the flow's own process leaves the count as it is.
create or replace function flowledger.heed_crash(flow uuid, error_type text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if error_type = 'ProcessKilled' then
    insert into flowledger.flow_controls as known (flow_id, crashes) values (flow, 1)
    on conflict (flow_id) do update set crashes = known.crashes + 1;
    update flowledger.flow_controls as known
    set paused_at = clock_timestamp(), paused_by = 'flowledger',
        paused_reason = format('its process died by a signal %s times in a row', known.crashes)
    where known.flow_id = flow and known.crashes >= known.crash_limit and known.paused_at is null;
  elsif error_type is null or flowledger.retry_class(error_type) = 'raised' then
    update flowledger.flow_controls as known set crashes = 0 where known.flow_id = flow and known.crashes > 0;
  end if;
end
$$;

-- The owner's, or an operator's, wish to end an execution. Answers 'cancelled' (it had not started), 'wished' (its
-- worker has been told), 'ended' (too late) or 'unknown' (there is none that the caller may cancel).
create or replace function flowledger.cancel(execution uuid, reason text default null) returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  found_status text;
begin
  select executions.status into found_status
  from public.crewai_flow_executions as executions
  where executions.id = execution and (executions.executed_by = auth.uid() or flowledger.is_operator())
  for update;

  if not found then
    return 'unknown';
  end if;
  if flowledger.is_terminal(found_status) then
    return 'ended';
  end if;

  if found_status = 'pending' then
    perform set_config('flowledger.actor', flowledger.caller(), true);
    update public.crewai_flow_executions as executions
    set status = 'cancelled', error_type = 'Cancelled', error_message = coalesce(reason, 'cancelled before it started')
    where executions.id = execution;
    return 'cancelled';
  end if;

  insert into flowledger.cancel_wishes (execution_id, wished_by, reason)
  values (execution, auth.uid(), left(reason, 1000))
  on conflict do nothing;
  notify flowledger_wishes;
  return 'wished';
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

-- Ends pending executions whose time to wait is over.
create or replace function flowledger.expire(most integer default 100) returns setof uuid
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform set_config('flowledger.actor', 'reaper', true);
  return query
  with late as (
    select executions.id
    from flowledger.queue as queue
    join public.crewai_flow_executions as executions on executions.id = queue.execution_id
    where queue.expires_at < clock_timestamp()
    order by queue.expires_at
    limit most
    for update of queue, executions skip locked
  )
  update public.crewai_flow_executions as executions
  set status = 'timeout',
      error_type = 'QueueTimeout',
      error_message = 'No worker took this execution in the time that it was allowed to wait. It never started.'
  from late
  where executions.id = late.id
  returning executions.id;
end
$$;


-- ---------------------------------------------------------------------------------------------------------------------
-- Retries

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


-- ---------------------------------------------------------------------------------------------------------------------
-- Starting an execution in one line, as the user who calls it

create or replace function flowledger.kickoff(
  flow_key text, inputs jsonb default '{}', board_meeting_id uuid default null, metadata jsonb default null
) returns public.crewai_flow_executions
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  flow uuid := (select flows.id from public.crewai_flows as flows
                where flows.flow_key = kickoff.flow_key and flows.status = 'active');
  born public.crewai_flow_executions;
begin
  if flow is null then
    raise exception 'there is no flow %', flow_key
      using errcode = 'FL005', hint = 'select flow_key, flow_name from crewai_flows where status = ''active'';';
  end if;
  insert into public.crewai_flow_executions (flow_id, execution_key, input_state, board_meeting_id, executed_by, metadata)
  values (flow, flowledger.execution_key(flow_key), inputs, board_meeting_id, auth.uid(), metadata)
  returning * into born;
  return born;
end
$$;


-- ---------------------------------------------------------------------------------------------------------------------
-- Flows and workers make themselves known

-- Stores a discovered flow under its key. A new fingerprint archives the version before and counts up.
create or replace function flowledger.remember_flow(
  key text, name text, description text, definition jsonb, source text
) returns table (id uuid, version integer)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  before_ public.crewai_flows;
  archived uuid;
begin
  perform pg_advisory_xact_lock(hashtextextended('flowledger.remember_flow ' || key, 0));
  perform from flowledger.flow_controls as controls
  where controls.flow_id = (select flows.id from public.crewai_flows as flows where flows.flow_key = key)
  for no key update;
  -- No key changes: births of the flow go on meanwhile, and those who count them do not wait behind this for a birth.
  select flows.* into before_ from public.crewai_flows as flows where flows.flow_key = key for no key update;

  if not found then
    return query
    insert into public.crewai_flows (flow_key, flow_name, description, flow_definition, python_code, status, published_at)
    values (key, name, description, definition, source, 'active', now())
    returning crewai_flows.id, crewai_flows.version;
    return;
  end if;

  if before_.flow_definition ->> 'fingerprint' is not distinct from definition ->> 'fingerprint'
     and before_.status = 'active' and before_.created_by is null then
    return query select before_.id, before_.version;
    return;
  end if;

  insert into public.crewai_flows (
    flow_key, flow_name, description, flow_definition, python_code, status, version, parent_flow_id,
    created_by, created_at, published_at, metadata, tags
  ) values (
    -- Random at its end, so that nobody can take the key of a version to come.
    left(before_.flow_key, 76) || '@' || before_.version || '~' || right(gen_random_uuid()::text, 12),
    before_.flow_name, before_.description, before_.flow_definition, before_.python_code,
    'archived', before_.version, before_.parent_flow_id,
    before_.created_by, before_.created_at, before_.published_at, before_.metadata, before_.tags
  )
  returning crewai_flows.id into archived;

  -- A new version may have what a crash loop lacked.
  update flowledger.flow_controls as controls
  set crashes = 0,
      paused_at = case when controls.paused_by <> 'flowledger' then controls.paused_at end,
      paused_reason = case when controls.paused_by <> 'flowledger' then controls.paused_reason end,
      paused_by = nullif(controls.paused_by, 'flowledger')
  where controls.flow_id = before_.id and (controls.crashes > 0 or controls.paused_by = 'flowledger');

  -- What runs is the operator's project, whoever held the key before.
  return query
  update public.crewai_flows as flows
  set flow_name = name, description = remember_flow.description, flow_definition = definition, python_code = source,
      status = 'active', version = before_.version + 1, parent_flow_id = archived, created_by = null, published_at = now()
  where flows.id = before_.id
  returning flows.id, flows.version;
end
$$;

create or replace function flowledger.enlist_worker(
  worker uuid, host text, pid integer, version text, slots integer, flow_ids uuid[]
) returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into flowledger.workers (id, host, pid, version, slots, flow_ids)
  values (worker, host, pid, version, slots, flow_ids)
  on conflict (id) do update set flow_ids = excluded.flow_ids, seen_at = clock_timestamp()
$$;

create or replace function flowledger.discharge_worker(worker uuid) returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  delete from flowledger.workers where id = worker
$$;
