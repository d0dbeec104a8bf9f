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
comment on column flowledger.failures.cost_usd is
  'Exact, of the calls with a known cost: what was wasted is no less. NULL: of none of them.';
comment on column flowledger.failures.message is 'The first line, at most 500 characters.';
create index if not exists failures_by_time on flowledger.failures (failed_at);
create index if not exists failures_by_fingerprint on flowledger.failures (fingerprint, failed_at);

-- Where no frame of the project's own is known.
create or replace function flowledger.fingerprint_of(flow uuid, error_type text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select left(encode(sha256(convert_to(flow::text || coalesce(error_type, ''), 'UTF8')), 'hex'), 12)
$$;

-- Called at the end of an execution that failed or ran out of time. Its metadata may hold what its user gave.
create or replace function flowledger.note_failure(ended public.crewai_flow_executions) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  insert into flowledger.failures (
    execution_id, fingerprint, failed_at, flow_id, flow_version, error_type, place, message, token_count, cost_usd
  )
  values (
    ended.id,
    coalesce(left(ended.metadata ->> 'error_fingerprint', 64),
             flowledger.fingerprint_of(ended.flow_id, ended.error_type)),
    ended.completed_at, ended.flow_id, flowledger.count_of(ended.metadata -> 'flow_version'), ended.error_type,
    left(ended.metadata ->> 'error_place', 500),
    left(split_part(ltrim(coalesce(ended.error_message, ''), E' \n\r\t'), E'\n', 1), 500),
    ended.token_count,
    coalesce((select sum(usage.cost_usd) from flowledger.usage as usage where usage.execution_id = ended.id),
             ended.cost_usd))
  on conflict do nothing
$$;
