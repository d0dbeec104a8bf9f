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
comment on column flowledger.failures.message is 'The first line, at most 500 characters.';
create index if not exists failures_by_time on flowledger.failures (failed_at);
create index if not exists failures_by_fingerprint on flowledger.failures (fingerprint, failed_at);

-- Called at the end of an execution that failed or ran out of time.
create or replace function flowledger.note_failure(ended public.crewai_flow_executions) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  insert into flowledger.failures (
    execution_id, fingerprint, failed_at, flow_id, flow_version, error_type, place, message, token_count, cost_usd
  )
  values (
    ended.id,
    coalesce(ended.metadata ->> 'error_fingerprint', left(md5(ended.flow_id::text || coalesce(ended.error_type, '')), 12)),
    ended.completed_at, ended.flow_id,
    case when jsonb_typeof(ended.metadata -> 'flow_version') = 'number' then (ended.metadata ->> 'flow_version')::numeric::integer end,
    ended.error_type, ended.metadata ->> 'error_place',
    left(split_part(ltrim(coalesce(ended.error_message, ''), E' \n\r\t'), E'\n', 1), 500),
    ended.token_count, ended.cost_usd)
  on conflict do nothing
$$;
