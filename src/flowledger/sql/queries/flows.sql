-- The flows that executions point to.

-- name: remember
-- Stores a discovered flow; a changed one counts its version up.
select * from flowledger.remember_flow(%(key)s, %(name)s, %(description)s, %(definition)s, %(source)s)

-- name: list
-- The flows that can be started, by key.
select id, flow_key, flow_name, description, flow_definition, version, execution_count, last_executed_at
from public.crewai_flows
where status = 'active'
order by flow_key

-- name: fold_counts
-- Brings execution_count up to date.
select flowledger.fold_execution_counts()
