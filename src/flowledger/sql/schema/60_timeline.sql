-- What happened inside an execution, in order, and what it printed. Append-only, written by the lease's holder only.

create table if not exists flowledger.timeline (
  execution_id  uuid not null references public.crewai_flow_executions (id) on delete cascade,
  sequence      integer not null,
  at            timestamptz not null,
  kind          text not null,
  name          text not null,
  fields        jsonb not null default '{}',
  parent        integer,
  began         integer,
  constraint timeline_pkey primary key (execution_id, sequence)
);
comment on table flowledger.timeline is 'Events of an execution: steps, LLM calls, tool calls and what else happens inside it.';
comment on column flowledger.timeline.sequence is 'Counts from 1 within its execution; a gap means that events were dropped.';
comment on column flowledger.timeline.parent is 'Sequence of the event with which the enclosing step or call began. NULL: none.';
comment on column flowledger.timeline.began is 'Of an end: the sequence of its beginning. NULL: this is a beginning, or a moment.';

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
