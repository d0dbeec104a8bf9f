-- Deleting what ended long ago, and remembering that it was done.

create table if not exists flowledger.prunes (
  id            bigint generated always as identity primary key,
  pruned_at     timestamptz not null default now(),
  pruned_by     text not null,
  statuses      text[] not null,
  ended_before  timestamptz not null,
  executions    bigint not null default 0,
  archive       jsonb,
  constraint only_ended_executions_are_pruned
    check (statuses <@ array['completed', 'failed', 'cancelled', 'timeout'] and ended_before <= pruned_at)
);
comment on table flowledger.prunes is 'When ended executions were deleted, by whom, which, how many, and where they were archived.';
comment on column flowledger.prunes.archive is 'The archive''s manifest. NULL: deleted without one.';

-- Notes who deletes what, before anything is deleted. Answers with the number under which `prune` does it.
create or replace function flowledger.open_prune(statuses text[], ended_before timestamptz, archive jsonb) returns bigint
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into flowledger.prunes (pruned_by, statuses, ended_before, archive)
  values (flowledger.caller(), statuses, ended_before, archive)
  returning id
$$;

-- Deletes those of these executions that the opened prune is about, with all that belongs to them, takes them off the
-- flows' counters and adds them to the note. Answers how many went.
create or replace function flowledger.prune(opened bigint, executions uuid[]) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  due uuid[];
  counted uuid[];
  removed bigint[];
  gone bigint;
begin
  -- In the order in which all lock several of them; and none that has ended only since, which would be out of it.
  due := array(
    select ledger.id
    from public.crewai_flow_executions as ledger
    join flowledger.prunes as note on note.id = opened
    where ledger.id = any (executions)
      and ledger.status = any (note.statuses)
      and coalesce(ledger.completed_at, ledger.started_at) < note.ended_before
    order by ledger.id
    for update of ledger);

  with deleted as (
    delete from public.crewai_flow_executions as ledger
    where ledger.id = any (due)
    returning ledger.flow_id
  ), by_flow as (
    select deleted.flow_id, count(*) as number from deleted group by deleted.flow_id
  )
  select array_agg(by_flow.flow_id), array_agg(by_flow.number), coalesce(sum(by_flow.number), 0)
  into counted, removed, gone
  from by_flow;

  perform flowledger.lock_flows(counted);
  update public.crewai_flows as flows
  set execution_count = flows.execution_count - by_flow.number
  from unnest(counted, removed) as by_flow (flow_id, number)
  where flows.id = by_flow.flow_id;

  update flowledger.prunes as note set executions = note.executions + gone where note.id = opened;
  return gone;
end
$$;
