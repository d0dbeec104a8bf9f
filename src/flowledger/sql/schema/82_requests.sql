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
