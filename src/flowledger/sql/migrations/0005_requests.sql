-- Migration 0005, 2026-11-27. May be pasted into an SQL editor, and repeated.
--
-- Idempotency keys of requests, and the list of executions that have ended. What each is for stands in the schema's own
-- files. Executions that ended before are listed here: about 25 seconds for each million of them, in which nothing starts
-- and nothing ends.

lock table public.crewai_flow_executions in exclusive mode;

-- =====================================================================================================================
-- 82_requests.sql

-- Requests that carried an idempotency key, and what they started: asked again, they are answered with the same execution.

create table if not exists flowledger.requests (
  user_id       uuid not null,
  key           text not null,
  digest        bytea not null,
  execution_id  uuid not null references public.crewai_flow_executions (id) on delete cascade,
  asked_at      timestamptz not null default clock_timestamp(),
  constraint requests_pkey primary key (user_id, key),
  constraint key_has_1_to_200_characters check (length(key) between 1 and 200)
);
comment on table flowledger.requests is 'Idempotency keys of those who start executions. One lives as long as its execution.';
comment on column flowledger.requests.digest is 'Of the whole request: the same key with another one is refused.';
create index if not exists requests_of_execution on flowledger.requests (execution_id);

-- What the caller's request with this key started, and whether it was this very request. No row: nothing yet, and until
-- the caller's transaction ends nobody else starts anything with the key.
create or replace function flowledger.answered(key text, digest bytea) returns table (execution_id uuid, is_same boolean)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform pg_advisory_xact_lock(hashtextextended('flowledger.requests ' || auth.uid() || ' ' || key, 0));
  return query
  select requests.execution_id, requests.digest = digest
  from flowledger.requests as requests
  where requests.user_id = auth.uid() and requests.key = key;
end
$$;

-- Remembers what the caller's request started.
create or replace function flowledger.remember_answer(key text, digest bytea, execution uuid) returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  -- Somebody else's execution is no answer.
  insert into flowledger.requests (user_id, key, digest, execution_id)
  select executions.executed_by, remember_answer.key, remember_answer.digest, executions.id
  from public.crewai_flow_executions as executions
  where executions.id = execution and executions.executed_by = auth.uid()
$$;

-- =====================================================================================================================
-- 83_listing.sql

-- Executions that have ended, narrow and written once: lists stay fast whatever they are filtered by, and the ledger's own
-- table keeps the indexes of its document. Those that wait or run are few, and are listed from the ledger itself.

create table if not exists flowledger.ended_executions (
  execution_id      uuid primary key references public.crewai_flow_executions (id) on delete cascade,
  listed_at         timestamptz not null,
  executed_by       uuid,
  flow_id           uuid not null,
  board_meeting_id  uuid,
  status            text not null,
  execution_mode    text,
  error             text
);
comment on table flowledger.ended_executions is 'Executions that have ended, by what lists are filtered by.';
comment on column flowledger.ended_executions.listed_at is
  'started_at, as a time that every reader can tell: lists are in this order. What never had one comes last.';
comment on column flowledger.ended_executions.error is 'Error type and message, their first 1,000 characters: what is searched.';

insert into flowledger.ended_executions (
  execution_id, listed_at, executed_by, flow_id, board_meeting_id, status, execution_mode, error
)
select id, least(greatest(coalesce(started_at, '-infinity'), '0002-01-01 00:00Z'), '9999-12-30 00:00Z'), executed_by, flow_id,
       board_meeting_id, status, execution_mode, left(nullif(concat_ws(': ', error_type, error_message), ''), 1000)
from public.crewai_flow_executions
where status in ('completed', 'failed', 'cancelled', 'timeout')
on conflict do nothing;

-- What a user's list is filtered by lies in the index itself, so that a long history is passed over quickly.
create index if not exists ended_of_user on flowledger.ended_executions (executed_by, listed_at desc, execution_id desc)
  include (flow_id, board_meeting_id, status, execution_mode);
create index if not exists ended_of_all on flowledger.ended_executions (listed_at desc, execution_id desc);
create index if not exists ended_of_flow on flowledger.ended_executions (flow_id, listed_at desc, execution_id desc);
create index if not exists ended_by_status on flowledger.ended_executions (status, listed_at desc, execution_id desc);
create index if not exists ended_by_mode on flowledger.ended_executions (execution_mode, listed_at desc, execution_id desc);
create index if not exists ended_of_meeting on flowledger.ended_executions (board_meeting_id, listed_at desc, execution_id desc)
  where board_meeting_id is not null;
create index if not exists ended_with_error on flowledger.ended_executions (listed_at desc, execution_id desc)
  where error is not null;

-- Called at the end of an execution.
create or replace function flowledger.list_ended(ended public.crewai_flow_executions) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  insert into flowledger.ended_executions (
    execution_id, listed_at, executed_by, flow_id, board_meeting_id, status, execution_mode, error
  )
  values (
    ended.id,
    least(greatest(coalesce(ended.started_at, '-infinity'), '0002-01-01 00:00Z'), '9999-12-30 00:00Z'),
    ended.executed_by, ended.flow_id, ended.board_meeting_id, ended.status, ended.execution_mode,
    left(nullif(concat_ws(': ', ended.error_type, ended.error_message), ''), 1000))
  on conflict do nothing
$$;

-- =====================================================================================================================
-- 50_lifecycle.sql

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

-- =====================================================================================================================
-- 90_policies.sql

alter table flowledger.requests enable row level security;
alter table flowledger.ended_executions enable row level security;

drop policy if exists requests_read_own on flowledger.requests;
create policy requests_read_own on flowledger.requests
  for select using ((select flowledger.is_operator()) or auth.uid() = user_id);
-- Of users alone, as of the ledger: beside a condition on the same column the planner checks it once and not for each row.
drop policy if exists ended_executions_read_own on flowledger.ended_executions;
create policy ended_executions_read_own on flowledger.ended_executions
  for select using (auth.uid() = executed_by);

create or replace view flowledger.every_ended_execution as select * from flowledger.ended_executions;
comment on view flowledger.every_ended_execution is 'ended_executions as operators see it: the rows of all users.';

-- A platform may have granted everything on new tables, and Postgres lets everybody execute new functions; what counts is
-- the list below.
revoke all on flowledger.requests, flowledger.ended_executions, flowledger.every_ended_execution
  from public, anon, authenticated, service_role;
revoke all on function
  flowledger.answered(text, bytea),
  flowledger.remember_answer(text, bytea, uuid),
  flowledger.list_ended(public.crewai_flow_executions)
  from public, anon, authenticated, service_role;

grant select on flowledger.requests to authenticated, service_role;
grant select on flowledger.ended_executions to authenticated;
grant select on flowledger.every_ended_execution to service_role;
grant execute on function flowledger.answered(text, bytea), flowledger.remember_answer(text, bytea, uuid) to authenticated;

insert into flowledger.schema_migrations (version, name) values (5, 'requests') on conflict do nothing;
