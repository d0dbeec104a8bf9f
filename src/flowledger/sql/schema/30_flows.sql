-- crewai_flows: one row for each flow key. The row's id stays while the flow changes; each earlier version is kept
-- beside it as an archived row, reached through parent_flow_id.

create table if not exists public.crewai_flows (
  id                uuid not null default gen_random_uuid(),
  flow_key          varchar(100) not null,
  flow_name         varchar(200) not null,
  description       text,
  flow_definition   jsonb not null,
  python_code       text,
  status            varchar(20) default 'draft',
  version           integer default 1,
  parent_flow_id    uuid,
  created_by        uuid,
  updated_by        uuid,
  created_at        timestamptz default now(),
  updated_at        timestamptz default now(),
  published_at      timestamptz,
  metadata          jsonb,
  tags              text[] default array[]::text[],
  execution_count   integer default 0,
  last_executed_at  timestamptz,
  constraint crewai_flows_pkey primary key (id),
  constraint crewai_flows_flow_key_key unique (flow_key),
  constraint crewai_flows_parent_flow_id_fkey foreign key (parent_flow_id) references public.crewai_flows (id),
  constraint crewai_flows_status_check check (status in ('draft', 'active', 'archived', 'deprecated'))
);

-- Room on each page, so that the counter's updates stay on it (HOT).
alter table public.crewai_flows set (fillfactor = 70);

create index if not exists idx_crewai_flows_status on public.crewai_flows (status);
create index if not exists idx_crewai_flows_created_by on public.crewai_flows (created_by);
create index if not exists idx_crewai_flows_tags on public.crewai_flows using gin (tags);
create index if not exists idx_crewai_flows_created_at on public.crewai_flows (created_at desc);
create index if not exists idx_crewai_flows_search on public.crewai_flows
  using gin (to_tsvector('english', flow_name || ' ' || coalesce(description, '')));

-- Many databases have a function of this name and meaning already; it serves other tables too and is left alone.
do $guard$
begin
  if to_regprocedure('public.update_updated_at_column()') is null then
    create function public.update_updated_at_column() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
    as $$
    begin
      new.updated_at = now();
      return new;
    end
    $$;
  end if;
end
$guard$;

drop trigger if exists flows_updated_at on public.crewai_flows;
create trigger flows_updated_at
  before update on public.crewai_flows
  for each row
  -- Being executed does not change a flow.
  when (old.execution_count is not distinct from new.execution_count)
  execute function public.update_updated_at_column();
