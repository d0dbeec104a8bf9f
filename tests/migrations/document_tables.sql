-- The two tables as another application may have made them from the reference documents, with its own bodies behind the
-- triggers, a foreign key that cascades, and rows.
create table crewai_flows (
  id uuid primary key default gen_random_uuid(),
  flow_key varchar(100) not null unique,
  flow_name varchar(200) not null,
  description text,
  flow_definition jsonb not null,
  python_code text,
  status varchar(20) default 'draft' check (status in ('draft', 'active', 'archived', 'deprecated')),
  version integer default 1,
  parent_flow_id uuid references crewai_flows (id),
  created_by uuid,
  updated_by uuid,
  created_at timestamptz default now(),
  updated_at timestamptz default now(),
  published_at timestamptz,
  metadata jsonb,
  tags text[] default array[]::text[],
  execution_count integer default 0,
  last_executed_at timestamptz
);

create table crewai_flow_executions (
  id uuid primary key default gen_random_uuid(),
  flow_id uuid not null references crewai_flows (id) on delete cascade,
  execution_key varchar(100) not null unique,
  input_state jsonb,
  output_state jsonb,
  status varchar(20) default 'pending'
    check (status in ('pending', 'running', 'completed', 'failed', 'cancelled', 'timeout')),
  error_message text,
  error_stack text,
  error_type varchar(100),
  started_at timestamptz default now(),
  completed_at timestamptz,
  duration_ms integer,
  token_count integer,
  cost_usd numeric(10, 4),
  board_meeting_id uuid,
  executed_by uuid,
  execution_mode varchar(20) default 'manual' check (execution_mode in ('manual', 'scheduled', 'triggered')),
  metadata jsonb
);
comment on column crewai_flow_executions.execution_key is 'Unique identifier for tracking (format: FLOW-KEY-TIMESTAMP)';
comment on column crewai_flow_executions.board_meeting_id is
  'Links workflow execution to board meeting (when applicable)';

create index idx_flow_exec_board_meeting_id on crewai_flow_executions (board_meeting_id);
create index idx_flow_exec_executed_by on crewai_flow_executions (executed_by);
create index idx_flow_exec_flow_id on crewai_flow_executions (flow_id);
create index idx_flow_exec_recent on crewai_flow_executions (flow_id, started_at desc);
create index idx_flow_exec_started_at on crewai_flow_executions (started_at desc);
create index idx_flow_exec_status on crewai_flow_executions (status);

create function calculate_execution_duration() returns trigger language plpgsql as $$
begin
  new.duration_ms = extract(epoch from new.completed_at - new.started_at) * 1000;
  return new;
end
$$;
create function update_flow_execution_count() returns trigger language plpgsql as $$
begin
  update crewai_flows set execution_count = execution_count + 1 where id = new.flow_id;
  return new;
end
$$;
create trigger execution_duration_calculator before update on crewai_flow_executions
  for each row execute function calculate_execution_duration();
create trigger flow_execution_counter after insert on crewai_flow_executions
  for each row execute function update_flow_execution_count();

alter table crewai_flows enable row level security;
alter table crewai_flow_executions enable row level security;
create policy executions_create on crewai_flow_executions for insert with check (auth.uid() = executed_by);
create policy executions_read_own on crewai_flow_executions for select using (auth.uid() = executed_by);
create policy flows_read_active on crewai_flows for select using (status in ('active', 'draft'));

insert into crewai_flows (flow_key, flow_name, flow_definition) values ('OLD', 'Old', '{}'), ('IDLE', 'Idle', '{}');
insert into crewai_flow_executions (flow_id, execution_key, status)
select id, 'OLD-' || old_status, old_status
from crewai_flows cross join unnest(array['pending', 'running', 'completed']) as old_status
where flow_key = 'OLD';
update crewai_flows set execution_count = 41 where flow_key = 'OLD';
