-- Migration 0001, 2026-11-23. May be pasted into an SQL editor, and repeated.

-- =====================================================================================================================
-- 10_roles.sql

-- The three roles that requests run under, by the names that Supabase and PostgREST use. Where they exist, they stay as
-- they are. None needs BYPASSRLS: outcomes go through SECURITY DEFINER functions.

do $$
declare
  name text;
begin
  foreach name in array array['anon', 'authenticated', 'service_role'] loop
    if not exists (select from pg_roles where rolname = name) then
      execute format('create role %I nologin', name);
      -- The installing role may then act as each of them; Postgres 16 and later grant it no more than ADMIN.
      execute format('grant %I to %I', name, current_user);
    end if;
  end loop;
end
$$;

-- =====================================================================================================================
-- 20_auth.sql

-- auth.uid(), auth.role() and auth.jwt() as Supabase defines them. Skipped where auth.uid() exists: there the platform
-- owns schema auth. After a transaction a custom setting reads '' and not NULL, hence each nullif.

do $platform$
begin
  if to_regprocedure('auth.uid()') is not null then
    return;
  end if;

  create schema if not exists auth;

  create function auth.uid() returns uuid language sql stable as $$
    select coalesce(
      nullif(current_setting('request.jwt.claim.sub', true), ''),
      nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
    )::uuid
  $$;

  create function auth.role() returns text language sql stable as $$
    select coalesce(
      nullif(current_setting('request.jwt.claim.role', true), ''),
      nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role'
    )
  $$;

  create function auth.jwt() returns jsonb language sql stable as $$
    select coalesce(
      nullif(current_setting('request.jwt.claim', true), ''),
      nullif(current_setting('request.jwt.claims', true), '')
    )::jsonb
  $$;

  grant usage on schema auth to anon, authenticated, service_role;
  grant usage on schema public to anon, authenticated, service_role;

  -- Before Postgres 15 everybody could create in public. Only its owner may change that; elsewhere it is so already.
  if pg_has_role((select nspowner from pg_namespace where nspname = 'public'), 'usage') then
    revoke create on schema public from public;
  end if;
end
$platform$;

create schema if not exists flowledger;
revoke all on schema flowledger from public;
grant usage on schema flowledger to anon, authenticated, service_role;

-- Whether the caller operates the ledger: acts as, or logged in with a right to, the service role. Judged by the
-- session and not by current_user, which inside a SECURITY DEFINER function is always the owner.
create or replace function flowledger.is_operator() returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select pg_has_role(
    case current_setting('role') when 'none' then session_user else current_setting('role')::name end,
    'service_role',
    'usage'
  )
$$;

-- =====================================================================================================================
-- 25_migrations.sql

-- Which migrations this database has. Each registers itself at its end, so that one pasted into an SQL editor counts too;
-- the runner then fills in the checksum.

create table if not exists flowledger.schema_migrations (
  version     integer primary key,
  name        text not null,
  sha256      text,
  applied_at  timestamptz not null default now(),
  applied_by  text not null default current_user
);
comment on table flowledger.schema_migrations is 'The migrations that this database has.';
comment on column flowledger.schema_migrations.sha256 is 'Of the file as applied. NULL: applied by hand.';

-- =====================================================================================================================
-- 30_flows.sql

-- crewai_flows: one row for each flow key. The row's id stays while the flow changes; each earlier version is kept
-- beside it as an archived row, reached through parent_flow_id.

create table if not exists public.crewai_flows (
  id                uuid not null default gen_random_uuid(),
  flow_key          varchar(100) not null,
  flow_name         varchar(200) not null,
  description       text,
  flow_definition   jsonb not null,
  python_code       text,
  status            varchar(20) default 'draft',
  version           integer default 1,
  parent_flow_id    uuid,
  created_by        uuid,
  updated_by        uuid,
  created_at        timestamptz default now(),
  updated_at        timestamptz default now(),
  published_at      timestamptz,
  metadata          jsonb,
  tags              text[] default array[]::text[],
  execution_count   integer default 0,
  last_executed_at  timestamptz,
  constraint crewai_flows_pkey primary key (id),
  constraint crewai_flows_flow_key_key unique (flow_key),
  constraint crewai_flows_parent_flow_id_fkey foreign key (parent_flow_id) references public.crewai_flows (id),
  constraint crewai_flows_status_check check (status in ('draft', 'active', 'archived', 'deprecated'))
);

-- Room on each page, so that the counter's updates stay on it (HOT).
alter table public.crewai_flows set (fillfactor = 70);

create index if not exists idx_crewai_flows_status on public.crewai_flows (status);
create index if not exists idx_crewai_flows_created_by on public.crewai_flows (created_by);
create index if not exists idx_crewai_flows_tags on public.crewai_flows using gin (tags);
create index if not exists idx_crewai_flows_created_at on public.crewai_flows (created_at desc);
create index if not exists idx_crewai_flows_search on public.crewai_flows
  using gin (to_tsvector('english', flow_name || ' ' || coalesce(description, '')));

-- Many databases have a function of this name and meaning already; it serves other tables too and is left alone.
do $guard$
begin
  if to_regprocedure('public.update_updated_at_column()') is null then
    create function public.update_updated_at_column() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
    begin
      new.updated_at = now();
      return new;
    end
    $$;
  end if;
end
$guard$;

drop trigger if exists flows_updated_at on public.crewai_flows;
create trigger flows_updated_at
  before update on public.crewai_flows
  for each row
  -- Being executed does not change a flow.
  when (old.execution_count is not distinct from new.execution_count)
  execute function public.update_updated_at_column();

-- =====================================================================================================================
-- 40_executions.sql

-- crewai_flow_executions: one row for each execution, exactly as the reference document prints it. What the document
-- cannot show (the triggers' bodies, what a birth must look like) stands in 50_lifecycle.sql.

create table if not exists public.crewai_flow_executions (
  id                uuid not null default gen_random_uuid(),
  flow_id           uuid not null,
  execution_key     varchar(100) not null,
  input_state       jsonb,
  output_state      jsonb,
  status            varchar(20) default 'pending',
  error_message     text,
  error_stack       text,
  error_type        varchar(100),
  started_at        timestamptz default now(),
  completed_at      timestamptz,
  duration_ms       integer,
  token_count       integer,
  cost_usd          numeric(10, 4),
  board_meeting_id  uuid,
  executed_by       uuid,
  execution_mode    varchar(20) default 'manual',
  metadata          jsonb,
  constraint crewai_flow_executions_pkey primary key (id),
  constraint crewai_flow_executions_execution_key_key unique (execution_key),
  constraint crewai_flow_executions_flow_id_fkey foreign key (flow_id) references public.crewai_flows (id),
  constraint crewai_flow_executions_execution_mode_check
    check (execution_mode in ('manual', 'scheduled', 'triggered')),
  constraint crewai_flow_executions_status_check
    check (status in ('pending', 'running', 'completed', 'failed', 'cancelled', 'timeout'))
);

comment on column public.crewai_flow_executions.execution_key is
  'Unique identifier for tracking (format: FLOW-KEY-TIMESTAMP)';
comment on column public.crewai_flow_executions.board_meeting_id is
  'Links workflow execution to board meeting (when applicable)';

alter table public.crewai_flow_executions set (
  fillfactor = 85,
  autovacuum_vacuum_scale_factor = 0.02
);

create index if not exists idx_flow_exec_board_meeting_id on public.crewai_flow_executions (board_meeting_id);
create index if not exists idx_flow_exec_executed_by on public.crewai_flow_executions (executed_by);
create index if not exists idx_flow_exec_flow_id on public.crewai_flow_executions (flow_id);
create index if not exists idx_flow_exec_recent on public.crewai_flow_executions (flow_id, started_at desc);
create index if not exists idx_flow_exec_started_at on public.crewai_flow_executions (started_at desc);
create index if not exists idx_flow_exec_status on public.crewai_flow_executions (status);

-- A ledger never loses a row because a flow is deleted. The document hides the foreign key's action, so an adopted
-- table may cascade.
do $$
begin
  if (select confdeltype from pg_constraint
      where conrelid = 'public.crewai_flow_executions'::regclass
        and conname = 'crewai_flow_executions_flow_id_fkey') <> 'a' then
    alter table public.crewai_flow_executions
      drop constraint crewai_flow_executions_flow_id_fkey,
      add constraint crewai_flow_executions_flow_id_fkey foreign key (flow_id) references public.crewai_flows (id);
  end if;
end
$$;

-- `<FLOW-KEY>-<YYYYMMDDTHHMMSSmmmZ>-<16 Crockford base32>`: sorts by time, and 80 random bits keep it from colliding or
-- being guessed. Flow keys over 63 characters are shortened so that every key fits its 100. Bytes 6 and 8 of a uuid
-- carry its version and are left out.
create or replace function flowledger.execution_key(flow_key text) returns text
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select
    case
      when length(flow_key) <= 63 then flow_key
      else left(flow_key, 46) || '~' || left(encode(sha256(convert_to(flow_key, 'UTF8')), 'hex'), 16)
    end
    || '-' || to_char(clock_timestamp() at time zone 'utc', 'YYYYMMDD"T"HH24MISSMS"Z"')
    || '-' || (
      select string_agg(substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', (get_byte(bytes, place) & 31) + 1, 1), '')
      from (select uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) as bytes) as random
      cross join unnest(array[0, 1, 2, 3, 4, 5, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17]) as place
    )
$$;

-- =====================================================================================================================
-- 50_lifecycle.sql

-- The law of the six statuses, kept by the database itself.
--
--   births      update_flow_execution_count(), after insert: only a fresh pending row is born; it is counted and queued
--   edges       calculate_execution_duration(), before update: only legal steps; identity and terminal rows are frozen
--   claim       pending -> running, under a lease with a fence
--   renew       keeps leases, and tells the holder which executions it lost and which are wished cancelled
--   finish      running -> an outcome, by the holder of the fence
--   cancel      pending -> cancelled at once; running: a wish, which the holder carries out
--   reap        running without a live lease -> an outcome
--
-- Every function names its schemas and puts pg_temp last: with an empty search_path, a caller's temporary type named
-- "text" would come before the real one, and its check would run with the owner's rights.
--
-- Whatever changes a status, the update trigger keeps the side tables in step with it: it writes the transition, takes
-- the row from the queue and ends the lease. Lock order: ledger row, then queue, lease or wish.

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
  place         bigint generated always as identity
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 200);
comment on table flowledger.queue is 'Pending executions, narrow, so that claiming stays fast behind any number of finished ones.';
create index if not exists queue_order on flowledger.queue (priority desc, place);

create sequence if not exists flowledger.fences;
comment on sequence flowledger.fences is 'Grows with each claim; a holder with an older fence can no longer finish.';

create table if not exists flowledger.leases (
  execution_id  uuid primary key references public.crewai_flow_executions (id) on delete cascade,
  fence         bigint not null unique default nextval('flowledger.fences'),
  worker_id     uuid not null,
  claimed_at    timestamptz not null,
  expires_at    timestamptz not null,
  deadline_at   timestamptz not null,
  constraint deadline_is_after_claim check (deadline_at > claimed_at)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 200);
comment on table flowledger.leases is 'Who runs what, and until when unless renewed. Heartbeats live here, never on the ledger row.';
comment on column flowledger.leases.deadline_at is 'When the execution''s timeout is reached.';

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

  insert into flowledger.uncounted_executions (flow_id, born_at) values (new.flow_id, clock_timestamp());
  insert into flowledger.queue (execution_id, flow_id) values (new.id, new.flow_id);
  insert into flowledger.transitions (execution_id, to_status, actor)
  values (new.id, new.status, flowledger.caller());

  -- A notification makes commits wait for one another, so only a worker that found nothing to do is woken.
  if exists (select from flowledger.workers where waiting) then
    notify flowledger_queue;
  end if;

  return null;
end
$$;

-- The execution's own timeout in seconds; NULL when it has none or one that makes no sense.
create or replace function flowledger.timeout_of(metadata jsonb) returns double precision
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  -- Judged as numeric, which holds every JSON number: a double would overflow at 1e400. Far less than a millisecond would
  -- put the deadline on the claim itself. Nested, because only CASE keeps a cast from being tried too early.
  select case when jsonb_typeof(metadata -> 'timeout_seconds') = 'number' then
    case when (metadata ->> 'timeout_seconds')::numeric between 0.001 and 2147483 then
      (metadata ->> 'timeout_seconds')::double precision
    end
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
  folded bigint;
begin
  with gone as (
    delete from flowledger.uncounted_executions
    where ctid = any (array(select ctid from flowledger.uncounted_executions limit 10000 for update skip locked))
    returning flow_id, born_at
  ), births as (
    select flow_id, count(*) as added, max(born_at) as last_born_at from gone group by flow_id
  ), in_order as (
    -- One order for all callers, so that they cannot deadlock.
    select flows.id, births.added, births.last_born_at
    from births join public.crewai_flows as flows on flows.id = births.flow_id
    order by flows.id
    for update of flows
  ), counted as (
    update public.crewai_flows as flows
    set execution_count = coalesce(flows.execution_count, 0) + in_order.added,
        last_executed_at = greatest(flows.last_executed_at, in_order.last_born_at)
    from in_order
    where flows.id = in_order.id
    returning in_order.added
  )
  select coalesce(sum(added), 0) into folded from counted;
  return folded;
end
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


-- ---------------------------------------------------------------------------------------------------------------------
-- Claim and renew

-- Up to `slots` pending executions of the given flows become running, oldest first. `timeouts` holds each flow's
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
  taken uuid[];
  now_ timestamptz;
begin
  perform set_config('flowledger.actor', 'worker', true);

  -- Both rows are locked without waiting, so a claim cannot deadlock with a cancel, which holds the ledger row first.
  taken := array(
    select queue.execution_id
    from flowledger.queue as queue
    join public.crewai_flow_executions as executions on executions.id = queue.execution_id
    where queue.flow_id = any (flows) and queue.run_after <= clock_timestamp()
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

  insert into flowledger.leases (execution_id, worker_id, claimed_at, expires_at, deadline_at)
  select executions.id, worker, now_, now_ + lease,
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
  update flowledger.workers as workers set seen_at = clock_timestamp() where workers.id = worker;
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
begin
  if flowledger.is_terminal(finish.status) is not true then
    raise exception 'an execution does not end as %', coalesce(finish.status, 'NULL') using errcode = 'FL002';
  end if;

  perform set_config('flowledger.actor', 'worker', true);
  select executions.status into found_status
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
  return 'ok';
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
begin
  perform set_config('flowledger.actor', 'reaper', true);
  -- A worker is heard of every quarter of a lease, and no lease is longer than an hour.
  delete from flowledger.workers as workers where workers.seen_at < clock_timestamp() - interval '1 hour';

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
    update public.crewai_flow_executions as executions
    set status = verdict,
        error_type = case verdict when 'cancelled' then 'Cancelled' when 'timeout' then 'Timeout' else 'WorkerLost' end,
        error_message = 'The worker that ran this execution stopped renewing its lease. '
          || 'How the flow ended is not known; its effects may have happened.'
    where executions.id = orphan;
    return query select orphan, verdict;
  end loop;
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
  select flows.* into before_ from public.crewai_flows as flows where flows.flow_key = key for update;

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

-- =====================================================================================================================
-- 60_timeline.sql

-- What happened inside an execution, in order, and what it printed. Append-only, written by the lease's holder only.

create table if not exists flowledger.timeline (
  execution_id  uuid not null references public.crewai_flow_executions (id) on delete cascade,
  sequence      integer not null,
  at            timestamptz not null,
  kind          text not null,
  name          text not null,
  fields        jsonb not null default '{}',
  constraint timeline_pkey primary key (execution_id, sequence)
);
comment on table flowledger.timeline is 'Events of an execution: steps, LLM calls, tool calls.';
comment on column flowledger.timeline.sequence is 'Counts from 1 within its execution; a gap means that events were dropped.';

create table if not exists flowledger.logs (
  execution_id  uuid not null references public.crewai_flow_executions (id) on delete cascade,
  sequence      integer not null,
  at            timestamptz not null,
  stream        text not null,
  text          text not null,
  constraint logs_pkey primary key (execution_id, sequence),
  constraint stream_is_stdout_or_stderr check (stream in ('stdout', 'stderr'))
);
comment on table flowledger.logs is 'What the flow wrote to its standard streams: head and tail, bounded.';

-- Both append what belongs to executions that are still held under the given fence, and leave out the rest. Repeating a
-- call adds nothing, so that a lost answer may be retried.
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

create or replace function flowledger.append_logs(
  executions uuid[], fences bigint[], sequences integer[], ats timestamptz[], streams text[], texts text[]
) returns bigint
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  with appended as (
    insert into flowledger.logs (execution_id, sequence, at, stream, text)
    select given.execution_id, given.sequence, given.at, given.stream, given.text
    from unnest(executions, fences, sequences, ats, streams, texts)
      as given (execution_id, fence, sequence, at, stream, text)
    join flowledger.leases as leases using (execution_id, fence)
    on conflict do nothing
    returning 1
  )
  select count(*) from appended
$$;

-- =====================================================================================================================
-- 90_policies.sql

-- Who may see and do what. Users create and read their own executions and nothing else; an outcome is written through
-- the functions of 50_lifecycle.sql only. Row-level security is not forced: the owner, as whom those functions run,
-- stands above it.

alter table public.crewai_flows enable row level security;
alter table public.crewai_flow_executions enable row level security;
alter table flowledger.schema_migrations enable row level security;
alter table flowledger.settings enable row level security;
alter table flowledger.workers enable row level security;
alter table flowledger.queue enable row level security;
alter table flowledger.leases enable row level security;
alter table flowledger.cancel_wishes enable row level security;
alter table flowledger.transitions enable row level security;
alter table flowledger.uncounted_executions enable row level security;
alter table flowledger.timeline enable row level security;
alter table flowledger.logs enable row level security;

drop policy if exists executions_create on public.crewai_flow_executions;
create policy executions_create on public.crewai_flow_executions
  for insert with check (auth.uid() = executed_by);

drop policy if exists executions_read_own on public.crewai_flow_executions;
create policy executions_read_own on public.crewai_flow_executions
  for select using (auth.uid() = executed_by);

drop policy if exists flows_create_own on public.crewai_flows;
create policy flows_create_own on public.crewai_flows
  for insert with check (auth.uid() = created_by);

drop policy if exists flows_read_active on public.crewai_flows;
create policy flows_read_active on public.crewai_flows
  for select using (status = 'active' or auth.uid() = created_by);

drop policy if exists flows_update_own on public.crewai_flows;
create policy flows_update_own on public.crewai_flows
  for update using (auth.uid() = created_by) with check (auth.uid() = created_by);

drop policy if exists flows_delete_own_draft on public.crewai_flows;
create policy flows_delete_own_draft on public.crewai_flows
  for delete using (auth.uid() = created_by and status = 'draft');

-- Whoever sees an execution sees what belongs to it; the inner select is itself under row-level security.
drop policy if exists transitions_read_own on flowledger.transitions;
create policy transitions_read_own on flowledger.transitions for select using (
  (select flowledger.is_operator())
  or exists (select from public.crewai_flow_executions as executions where executions.id = execution_id));

drop policy if exists cancel_wishes_read_own on flowledger.cancel_wishes;
create policy cancel_wishes_read_own on flowledger.cancel_wishes for select using (
  (select flowledger.is_operator())
  or exists (select from public.crewai_flow_executions as executions where executions.id = execution_id));

drop policy if exists timeline_read_own on flowledger.timeline;
create policy timeline_read_own on flowledger.timeline for select using (
  (select flowledger.is_operator())
  or exists (select from public.crewai_flow_executions as executions where executions.id = execution_id));

drop policy if exists logs_read_own on flowledger.logs;
create policy logs_read_own on flowledger.logs for select using (
  (select flowledger.is_operator())
  or exists (select from public.crewai_flow_executions as executions where executions.id = execution_id));

drop policy if exists schema_migrations_read on flowledger.schema_migrations;
create policy schema_migrations_read on flowledger.schema_migrations for select using (true);
drop policy if exists settings_read on flowledger.settings;
create policy settings_read on flowledger.settings for select using ((select flowledger.is_operator()));
drop policy if exists settings_change on flowledger.settings;
create policy settings_change on flowledger.settings for update using ((select flowledger.is_operator()));
drop policy if exists workers_read on flowledger.workers;
create policy workers_read on flowledger.workers for select using ((select flowledger.is_operator()));
drop policy if exists queue_read on flowledger.queue;
create policy queue_read on flowledger.queue for select using ((select flowledger.is_operator()));
drop policy if exists leases_read on flowledger.leases;
create policy leases_read on flowledger.leases for select using ((select flowledger.is_operator()));

-- Every execution, for operators. A view runs with its owner's rights, above the row-level security of the table.
create or replace view flowledger.every_execution as select * from public.crewai_flow_executions;
comment on view flowledger.every_execution is 'crewai_flow_executions as operators see it: the rows of all users.';

-- A platform may have granted everything on new tables; what counts is the list below. Revoking on a table also takes
-- away the rights on its columns, so each grant comes after.
revoke all on public.crewai_flows, public.crewai_flow_executions from public, anon, authenticated, service_role;
revoke all on all tables in schema flowledger from public, anon, authenticated, service_role;
revoke all on all sequences in schema flowledger from public, anon, authenticated, service_role;
revoke all on all functions in schema flowledger from public, anon, authenticated, service_role;
revoke all on function public.calculate_execution_duration(), public.update_flow_execution_count()
  from public, anon, authenticated, service_role;

-- Operators read through every_execution; their right here lets the policies above ask whether a row is visible.
grant select on public.crewai_flow_executions to authenticated, service_role;
grant insert (flow_id, execution_key, input_state, board_meeting_id, executed_by, metadata)
  on public.crewai_flow_executions to authenticated;

grant select on public.crewai_flows to authenticated, service_role;
grant delete on public.crewai_flows to authenticated;
grant insert (flow_key, flow_name, description, flow_definition, python_code, metadata, tags, created_by)
  on public.crewai_flows to authenticated;
grant update (flow_name, description, flow_definition, python_code, metadata, tags, updated_by)
  on public.crewai_flows to authenticated;

grant select on flowledger.schema_migrations to anon, authenticated, service_role;
grant select on flowledger.transitions, flowledger.cancel_wishes, flowledger.timeline, flowledger.logs
  to authenticated, service_role;
grant select on flowledger.every_execution, flowledger.settings, flowledger.workers, flowledger.queue, flowledger.leases
  to service_role;
grant update (value) on flowledger.settings to service_role;

grant execute on function flowledger.kickoff(text, jsonb, uuid, jsonb) to authenticated;
grant execute on function
  flowledger.is_operator(), flowledger.execution_key(text), flowledger.cancel(uuid, text)
  to authenticated, service_role;
grant execute on function
  flowledger.claim(uuid, uuid[], double precision[], integer, interval, uuid[]),
  flowledger.renew(uuid, uuid[], bigint[], interval),
  flowledger.finish(uuid, bigint, text, jsonb, text, text, text, integer, numeric, integer, jsonb),
  flowledger.reap(interval, integer),
  flowledger.fold_execution_counts(),
  flowledger.remember_flow(text, text, text, jsonb, text),
  flowledger.enlist_worker(uuid, text, integer, text, integer, uuid[]),
  flowledger.discharge_worker(uuid),
  flowledger.append_timeline(uuid[], bigint[], integer[], timestamptz[], text[], text[], jsonb[]),
  flowledger.append_logs(uuid[], bigint[], integer[], timestamptz[], text[], text[])
  to service_role;

-- =====================================================================================================================
-- 95_adoption.sql

-- Tables that were here before flowledger: counters start at the truth. Old rows stay as they are. Those that say pending
-- are not queued: nobody knows whether they still are meant. Those that say running have no lease, and the first reaper
-- ends them as it ends every execution without a holder.

do $$
begin
  -- Births wait until counting is done.
  lock table public.crewai_flow_executions in share row exclusive mode;
  delete from flowledger.uncounted_executions;
  update public.crewai_flows as flows
  set execution_count = counted.executions
  from (
    select known.id, count(executions.id)::integer as executions
    from public.crewai_flows as known
    left join public.crewai_flow_executions as executions on executions.flow_id = known.id
    group by known.id
  ) as counted
  where counted.id = flows.id and flows.execution_count is distinct from counted.executions;
end
$$;

insert into flowledger.schema_migrations (version, name) values (1, 'initial') on conflict do nothing;
