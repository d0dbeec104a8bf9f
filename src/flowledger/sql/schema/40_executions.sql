-- crewai_flow_executions: one row for each execution, exactly as the reference document prints it. What the document
-- cannot show (the triggers' bodies, what a birth must look like) stands in 50_lifecycle.sql.

create table if not exists public.crewai_flow_executions (
  id                uuid not null default gen_random_uuid(),
  flow_id           uuid not null,
  execution_key     varchar(100) not null,
  input_state       jsonb,
  output_state      jsonb,
  status            varchar(20) default 'pending',
  error_message     text,
  error_stack       text,
  error_type        varchar(100),
  started_at        timestamptz default now(),
  completed_at      timestamptz,
  duration_ms       integer,
  token_count       integer,
  cost_usd          numeric(10, 4),
  board_meeting_id  uuid,
  executed_by       uuid,
  execution_mode    varchar(20) default 'manual',
  metadata          jsonb,
  constraint crewai_flow_executions_pkey primary key (id),
  constraint crewai_flow_executions_execution_key_key unique (execution_key),
  constraint crewai_flow_executions_flow_id_fkey foreign key (flow_id) references public.crewai_flows (id),
  constraint crewai_flow_executions_execution_mode_check
    check (execution_mode in ('manual', 'scheduled', 'triggered')),
  constraint crewai_flow_executions_status_check
    check (status in ('pending', 'running', 'completed', 'failed', 'cancelled', 'timeout'))
);

comment on column public.crewai_flow_executions.execution_key is
  'Unique identifier for tracking (format: FLOW-KEY-TIMESTAMP)';
comment on column public.crewai_flow_executions.board_meeting_id is
  'Links workflow execution to board meeting (when applicable)';

alter table public.crewai_flow_executions set (
  fillfactor = 85,
  autovacuum_vacuum_scale_factor = 0.02
);

create index if not exists idx_flow_exec_board_meeting_id on public.crewai_flow_executions (board_meeting_id);
create index if not exists idx_flow_exec_executed_by on public.crewai_flow_executions (executed_by);
create index if not exists idx_flow_exec_flow_id on public.crewai_flow_executions (flow_id);
create index if not exists idx_flow_exec_recent on public.crewai_flow_executions (flow_id, started_at desc);
create index if not exists idx_flow_exec_started_at on public.crewai_flow_executions (started_at desc);
create index if not exists idx_flow_exec_status on public.crewai_flow_executions (status);

-- A ledger never loses a row because a flow is deleted. The document hides the foreign key's action, so an adopted
-- table may cascade.
do $$
begin
  if (select confdeltype from pg_constraint
      where conrelid = 'public.crewai_flow_executions'::regclass
        and conname = 'crewai_flow_executions_flow_id_fkey') <> 'a' then
    alter table public.crewai_flow_executions
      drop constraint crewai_flow_executions_flow_id_fkey,
      add constraint crewai_flow_executions_flow_id_fkey foreign key (flow_id) references public.crewai_flows (id);
  end if;
end
$$;

-- `<FLOW-KEY>-<YYYYMMDDTHHMMSSmmmZ>-<16 Crockford base32>`: sorts by time, and 80 random bits keep it from colliding or
-- being guessed. Flow keys over 63 characters are shortened so that every key fits its 100. Bytes 6 and 8 of a uuid
-- carry its version and are left out.
create or replace function flowledger.execution_key(flow_key text) returns text
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select
    case
      when length(flow_key) <= 63 then flow_key
      else left(flow_key, 46) || '~' || left(encode(sha256(convert_to(flow_key, 'UTF8')), 'hex'), 16)
    end
    || '-' || to_char(clock_timestamp() at time zone 'utc', 'YYYYMMDD"T"HH24MISSMS"Z"')
    || '-' || (
      select string_agg(substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', (get_byte(bytes, place) & 31) + 1, 1), '')
      from (select uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) as bytes) as random
      cross join unnest(array[0, 1, 2, 3, 4, 5, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17]) as place
    )
$$;
