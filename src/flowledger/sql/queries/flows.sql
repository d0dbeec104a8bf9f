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
