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

-- name: find
-- The flow of a key, whatever its status.
select id from public.crewai_flows where flow_key = %(key)s

-- name: find_active
-- One flow that can be started, by its key.
select id, flow_key, flow_name, description, flow_definition, version, execution_count, last_executed_at
from public.crewai_flows
where flow_key = %(key)s and status = 'active'

-- name: page
-- Flows of any status as far as row-level security shows them, by key, from the one after `after` on. Words are looked for
-- in names and descriptions, and the whole of them in keys.
select id, flow_key, flow_name, description, status, version, tags, created_by, created_at, updated_at, published_at,
       execution_count, last_executed_at
from public.crewai_flows
where (%(statuses)s::text[] is null or status = any (%(statuses)s::text[]))
  and (%(after)s::text is null or flow_key > %(after)s)
  and (%(search)s::text is null
       or to_tsvector('english', flow_name || ' ' || coalesce(description, '')) @@ websearch_to_tsquery('english', %(search)s)
       or strpos(lower(flow_key), lower(%(search)s)) > 0)
order by flow_key
limit %(limit)s

-- name: show
-- One flow by its key, whatever its status, with what it is made of.
select id, flow_key, flow_name, description, status, version, tags, created_by, created_at, updated_at, published_at,
       execution_count, last_executed_at, parent_flow_id, metadata, flow_definition as definition, python_code
from public.crewai_flows
where flow_key = %(key)s

-- name: fold_counts
-- Brings execution_count up to date.
select flowledger.fold_execution_counts()

-- name: set_controls
-- Takes over what the project says about a flow.
select flowledger.set_controls(%(flow)s, %(controls)s)

-- name: statuses
-- What waits, runs and is paused, by key.
with waiting as (
  select flow_id, count(*) as executions from flowledger.queue group by flow_id
), running as (
  select flow_id, count(*) as executions from flowledger.leases group by flow_id
)
select flows.id, flows.flow_key, flows.version,
       coalesce(waiting.executions, 0) as waiting, coalesce(running.executions, 0) as running,
       controls.concurrency, controls.concurrency_per_user, coalesce(controls.retries, 0) as retries,
       controls.paused_at, controls.paused_by, controls.paused_reason
from public.crewai_flows as flows
left join flowledger.flow_controls as controls on controls.flow_id = flows.id
left join waiting on waiting.flow_id = flows.id
left join running on running.flow_id = flows.id
where flows.status = 'active'
order by flows.flow_key

-- name: backlog
-- What waits and runs of each flow, and since when the longest of those that may start waits. For operators.
with waiting as (
  select flow_id, count(*) as executions, min(run_after) filter (where run_after <= clock_timestamp()) as since
  from flowledger.queue
  group by flow_id
), running as (
  select flow_id, count(*) as executions from flowledger.leases group by flow_id
)
select flows.flow_key, coalesce(waiting.executions, 0) as waiting, coalesce(running.executions, 0) as running,
       coalesce(extract(epoch from clock_timestamp() - waiting.since), 0)::double precision as oldest_seconds
from public.crewai_flows as flows
left join waiting on waiting.flow_id = flows.id
left join running on running.flow_id = flows.id
where flows.status = 'active'
order by flows.flow_key

-- name: pause
-- Lets nothing of a flow start. No row comes back for an unknown flow.
select flowledger.pause_flow(flows.id, %(reason)s) as changed
from public.crewai_flows as flows
where flows.flow_key = %(key)s and flows.status = 'active'

-- name: resume
-- Lets a paused flow start again. No row comes back for an unknown flow.
select flowledger.resume_flow(flows.id) as changed
from public.crewai_flows as flows
where flows.flow_key = %(key)s and flows.status = 'active'
