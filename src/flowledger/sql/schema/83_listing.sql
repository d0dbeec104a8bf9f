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
