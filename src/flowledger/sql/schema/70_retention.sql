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
  gone bigint;
begin
  with deleted as (
    delete from public.crewai_flow_executions as ledger
    using flowledger.prunes as note
    where note.id = opened
      and ledger.id = any (executions)
      and ledger.status = any (note.statuses)
      and coalesce(ledger.completed_at, ledger.started_at) < note.ended_before
    returning ledger.flow_id
  ), by_flow as (
    select deleted.flow_id, count(*) as executions from deleted group by deleted.flow_id
  ), in_order as (
    -- The order in which births are counted, so that the two cannot deadlock.
    select flows.id, by_flow.executions
    from by_flow join public.crewai_flows as flows on flows.id = by_flow.flow_id
    order by flows.id
    for no key update of flows
  ), counted as (
    update public.crewai_flows as flows
    set execution_count = flows.execution_count - in_order.executions
    from in_order
    where flows.id = in_order.id
    returning in_order.executions
  )
  select coalesce(sum(counted.executions), 0) into gone from counted;

  update flowledger.prunes as note set executions = note.executions + gone where note.id = opened;
  return gone;
end
$$;
