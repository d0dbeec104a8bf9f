-- What an operator decides about a flow: how many of its executions may run at a time, how long they may wait, whether a
-- failed one is tried again, and whether any may start at all. A flow without a row has no limits. How it is obeyed
-- stands in 50_lifecycle.sql.

create table if not exists flowledger.flow_controls (
  flow_id               uuid primary key references public.crewai_flows (id) on delete cascade,
  concurrency           integer,
  concurrency_per_user  integer,
  queue_seconds         double precision,
  retries               integer not null default 0,
  retry_on              text[] not null default '{}',
  retry_seconds         double precision not null default 10,
  idempotent            boolean not null default false,
  crash_limit           integer not null default 5,
  crashes               integer not null default 0,
  paused_at             timestamptz,
  paused_by             text,
  paused_reason         text,
  constraint concurrency_is_at_least_one check (concurrency >= 1 and concurrency_per_user >= 1),
  constraint waiting_lasts_a_positive_time check (queue_seconds between 0.001 and 2147483),
  constraint retries_are_between_none_and_twenty check (retries between 0 and 20),
  constraint retries_wait_a_positive_time check (retry_seconds between 0.001 and 86400),
  constraint crash_limit_is_at_least_one check (crash_limit >= 1),
  constraint whoever_paused_is_named check ((paused_at is null) = (paused_by is null))
);
comment on table flowledger.flow_controls is 'Limits, retries and pauses of flows.';
comment on column flowledger.flow_controls.concurrency is 'Executions of the flow that may run at one time. NULL: any number.';
comment on column flowledger.flow_controls.concurrency_per_user is 'The same for each user.';
comment on column flowledger.flow_controls.queue_seconds is 'How long an execution may wait before it ends as timeout. NULL: for ever.';
comment on column flowledger.flow_controls.retries is 'How often a failed execution is followed by a new one.';
comment on column flowledger.flow_controls.retry_on is 'Error types to try again after. Empty: every exception of the flow''s own.';
comment on column flowledger.flow_controls.retry_seconds is 'Pause before the first retry; it doubles with each, up to a day.';
comment on column flowledger.flow_controls.idempotent is 'Running it twice does no harm: try again also when nobody knows how it ended.';
comment on column flowledger.flow_controls.crash_limit is 'Deaths by signal in a row after which the flow is paused.';
comment on column flowledger.flow_controls.paused_by is 'flowledger: a crash loop; else who paused it.';

-- Takes over what the project's own settings say of a flow; pauses and crashes stay. What they leave out is as without
-- limits.
create or replace function flowledger.set_controls(flow uuid, controls jsonb) returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into flowledger.flow_controls as known (
    flow_id, concurrency, concurrency_per_user, queue_seconds, retries, retry_on, retry_seconds, idempotent, crash_limit
  )
  select flow, given.concurrency, given.concurrency_per_user, given.queue_seconds, coalesce(given.retries, 0),
         coalesce(given.retry_on, '{}'), coalesce(given.retry_seconds, 10), coalesce(given.idempotent, false),
         coalesce(given.crash_limit, 5)
  from jsonb_to_record(controls) as given (
    concurrency integer, concurrency_per_user integer, queue_seconds double precision, retries integer, retry_on text[],
    retry_seconds double precision, idempotent boolean, crash_limit integer)
  on conflict (flow_id) do update
  set concurrency = excluded.concurrency, concurrency_per_user = excluded.concurrency_per_user,
      queue_seconds = excluded.queue_seconds, retries = excluded.retries, retry_on = excluded.retry_on,
      retry_seconds = excluded.retry_seconds, idempotent = excluded.idempotent, crash_limit = excluded.crash_limit
  where (known.concurrency, known.concurrency_per_user, known.queue_seconds, known.retries, known.retry_on,
         known.retry_seconds, known.idempotent, known.crash_limit)
        is distinct from
        (excluded.concurrency, excluded.concurrency_per_user, excluded.queue_seconds, excluded.retries, excluded.retry_on,
         excluded.retry_seconds, excluded.idempotent, excluded.crash_limit)
$$;

-- A paused flow starts nothing; births are accepted and wait. Answers whether that changed anything.
create or replace function flowledger.pause_flow(flow uuid, reason text default null) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into flowledger.flow_controls as known (flow_id, paused_at, paused_by, paused_reason)
  values (flow, clock_timestamp(), flowledger.caller(), left(reason, 1000))
  on conflict (flow_id) do update
  set paused_at = excluded.paused_at, paused_by = excluded.paused_by, paused_reason = excluded.paused_reason
  where known.paused_at is null;
  return found;
end
$$;

-- Lets a paused flow start again and forgets its crashes. Answers whether that changed anything.
create or replace function flowledger.resume_flow(flow uuid) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update flowledger.flow_controls as known
  set paused_at = null, paused_by = null, paused_reason = null, crashes = 0
  where known.flow_id = flow and known.paused_at is not null;
  if not found then
    return false;
  end if;
  notify flowledger_queue;
  return true;
end
$$;
