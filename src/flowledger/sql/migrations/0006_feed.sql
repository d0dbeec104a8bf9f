-- Migration 0006, 2026-11-27. May be pasted into an SQL editor, and repeated.
--
-- What is told to whoever watches. What each part is for stands in the schema's own files.

-- All at the beginning, so that whoever is in the middle of a step is found before anything has changed.
lock table flowledger.transitions, flowledger.timeline, flowledger.logs, flowledger.flow_controls in access exclusive mode;

-- =====================================================================================================================
-- 84_feed.sql

-- What is told to whoever watches: that an execution, its timeline, its logs or the flows changed; never what they are now.
--
-- `transitions.seq` is handed out before the commit, so a later number may be seen before an earlier one, and nobody can
-- ask for what comes after a number without missing some. Each row therefore keeps its transaction too: a reader who
-- remembers the snapshot under which it read asks for the rows whose transaction that snapshot did not show.

alter table flowledger.transitions add column if not exists xid xid8;
alter table flowledger.transitions alter column xid set default pg_current_xact_id();
comment on column flowledger.transitions.xid is 'The transaction that wrote it. NULL: written before the feed was there.';
create index if not exists transitions_by_transaction on flowledger.transitions (xid, seq) where xid is not null;

create table if not exists flowledger.watchers (
  id           uuid primary key,
  waits_until  timestamptz not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 200);
comment on table flowledger.watchers is 'Servers that found nothing new and want to be notified of the next change.';
comment on column flowledger.watchers.waits_until is 'Renewed while it waits, so that a server that is gone is notified no more.';

-- The watcher wants to be notified for as long as it is patient. It must look once more before it waits: what commits in
-- between has notified nobody.
create or replace function flowledger.watch(watcher uuid, patience interval) returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  delete from flowledger.watchers as gone where gone.waits_until < clock_timestamp() - interval '1 hour';
  insert into flowledger.watchers as known (id, waits_until) values (watcher, clock_timestamp() + patience)
  on conflict (id) do update set waits_until = excluded.waits_until;
$$;

create or replace function flowledger.stop_watching(watcher uuid) returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  delete from flowledger.watchers as watchers where watchers.id = watcher
$$;

-- A notification makes commits wait for one another, so only a watcher that found nothing new is notified. While changes
-- keep coming, it looks by itself and writers say nothing.
create or replace function flowledger.tell_watchers() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (select from flowledger.watchers where waits_until > clock_timestamp()) then
    notify flowledger_feed;
  end if;
  return null;
end
$$;

drop trigger if exists watchers_are_told_of_transitions on flowledger.transitions;
create trigger watchers_are_told_of_transitions
  after insert on flowledger.transitions
  for each statement execute function flowledger.tell_watchers();

drop trigger if exists watchers_are_told_of_events on flowledger.timeline;
create trigger watchers_are_told_of_events
  after insert on flowledger.timeline
  for each statement execute function flowledger.tell_watchers();

drop trigger if exists watchers_are_told_of_logs on flowledger.logs;
create trigger watchers_are_told_of_logs
  after insert on flowledger.logs
  for each statement execute function flowledger.tell_watchers();

drop trigger if exists watchers_are_told_of_flows on flowledger.flow_controls;
create trigger watchers_are_told_of_flows
  after insert or update or delete on flowledger.flow_controls
  for each statement execute function flowledger.tell_watchers();

-- Differs when anything differs that the caller may know of the flows: which there are, their versions, pauses, limits.
-- What the counters say is left out. As the owner, since users see a flow's controls only through its pages.
create or replace function flowledger.flows_digest() returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select left(encode(sha256(convert_to(coalesce(string_agg(told.words, E'\n' order by told.words), ''), 'UTF8')), 'hex'), 16)
  from (
    select jsonb_build_array(
      flows.id, flows.flow_key, flows.flow_name, flows.description, flows.status, flows.version,
      to_jsonb(controls) - 'crashes'
    )::text as words
    from public.crewai_flows as flows
    left join flowledger.flow_controls as controls on controls.flow_id = flows.id
    where flows.status = 'active' or flows.created_by = auth.uid() or (select flowledger.is_operator())
  ) as told
$$;


-- =====================================================================================================================
-- 90_policies.sql

alter table flowledger.watchers enable row level security;

drop policy if exists watchers_read on flowledger.watchers;
create policy watchers_read on flowledger.watchers for select using ((select flowledger.is_operator()));

revoke all on flowledger.watchers from public, anon, authenticated, service_role;
revoke all on function
  flowledger.watch(uuid, interval), flowledger.stop_watching(uuid), flowledger.tell_watchers(), flowledger.flows_digest()
  from public, anon, authenticated, service_role;

grant select on flowledger.watchers to service_role;
grant execute on function flowledger.flows_digest() to authenticated, service_role;
grant execute on function flowledger.watch(uuid, interval), flowledger.stop_watching(uuid) to service_role;

insert into flowledger.schema_migrations (version, name) values (6, 'feed') on conflict do nothing;
