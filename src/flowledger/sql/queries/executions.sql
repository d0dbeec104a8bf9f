-- The life of executions, in the order they live it. The law behind each step stands in schema/50_lifecycle.sql.

-- name: record
-- Inserts a pending row as the calling user; row-level security decides. No row comes back for an unknown flow.
insert into public.crewai_flow_executions (flow_id, execution_key, input_state, board_meeting_id, executed_by, metadata)
select flows.id, coalesce(%(execution_key)s, flowledger.execution_key(flows.flow_key)), %(inputs)s,
       %(board_meeting_id)s, auth.uid(), %(metadata)s
from public.crewai_flows as flows
where flows.flow_key = %(flow_key)s and flows.status = 'active'
returning *, %(flow_key)s as flow_key

-- name: claim
-- Takes up to `slots` pending executions of the worker's flows.
select * from flowledger.claim(%(worker)s, %(flows)s, %(timeouts)s, %(slots)s, %(lease)s, %(among)s)

-- name: renew
-- Keeps the worker's leases and brings the cancel wishes.
select * from flowledger.renew(%(worker)s, %(executions)s, %(fences)s, %(lease)s)

-- name: finish
-- Writes an outcome if the row still runs under our fence.
select flowledger.finish(
  %(execution)s, %(fence)s, %(status)s, %(output_state)s, %(error_type)s, %(error_message)s, %(error_stack)s,
  %(token_count)s, %(cost_usd)s, %(began_after_ms)s, %(metadata)s
) as answer

-- name: cancel
-- The owner's or an operator's wish to end an execution.
select flowledger.cancel(%(execution)s, %(reason)s) as answer

-- name: reap
-- Ends running executions that nobody holds any more.
select * from flowledger.reap(%(grace)s)

-- name: expire
-- Ends pending executions whose time to wait is over.
select expired as execution_id from flowledger.expire() as expired

-- name: find_of_user
-- Executions whose id or key begins with the reference, newest first, as far as row-level security shows them.
select executions.*, flows.flow_key
from public.crewai_flow_executions as executions
join public.crewai_flows as flows on flows.id = executions.flow_id
where executions.executed_by = %(user)s and (
  executions.id between %(first_id)s and %(last_id)s
  or executions.execution_key = %(reference)s
)
limit 3

-- name: find_of_all
-- The same for operators.
select executions.*, flows.flow_key
from flowledger.every_execution as executions
join public.crewai_flows as flows on flows.id = executions.flow_id
where executions.id between %(first_id)s and %(last_id)s or executions.execution_key = %(reference)s
limit 3

-- name: list_of_user
-- A page of the user's executions, newest first, after the given place. `executed_by` is named beside the policy, so
-- that the planner turns the policy into a one-time filter.
select executions.*, flows.flow_key
from public.crewai_flow_executions as executions
join public.crewai_flows as flows on flows.id = executions.flow_id
where executions.executed_by = %(user)s
  and (%(statuses)s::text[] is null or executions.status = any (%(statuses)s))
  and (%(flow_key)s::text is null or flows.flow_key = %(flow_key)s)
  and (%(mode)s::text is null or executions.execution_mode = %(mode)s)
  and (%(since)s::timestamptz is null or executions.started_at >= %(since)s)
  and (%(until)s::timestamptz is null or executions.started_at < %(until)s)
  and (%(meeting)s::uuid is null or executions.board_meeting_id = %(meeting)s)
  and (%(after_started_at)s::timestamptz is null
       or (executions.started_at, executions.id) < (%(after_started_at)s, %(after_id)s))
order by executions.started_at desc, executions.id desc
limit %(limit)s

-- name: list_of_all
-- The same for operators, who may ask for one user's.
select executions.*, flows.flow_key
from flowledger.every_execution as executions
join public.crewai_flows as flows on flows.id = executions.flow_id
where (%(by)s::uuid is null or executions.executed_by = %(by)s)
  and (%(statuses)s::text[] is null or executions.status = any (%(statuses)s))
  and (%(flow_key)s::text is null or flows.flow_key = %(flow_key)s)
  and (%(mode)s::text is null or executions.execution_mode = %(mode)s)
  and (%(since)s::timestamptz is null or executions.started_at >= %(since)s)
  and (%(until)s::timestamptz is null or executions.started_at < %(until)s)
  and (%(meeting)s::uuid is null or executions.board_meeting_id = %(meeting)s)
  and (%(after_started_at)s::timestamptz is null
       or (executions.started_at, executions.id) < (%(after_started_at)s, %(after_id)s))
order by executions.started_at desc, executions.id desc
limit %(limit)s

-- name: ended
-- How these executions ended, for operators.
select flows.flow_key, executions.status, executions.error_type, executions.duration_ms,
       executions.metadata -> 'events_dropped' as events_dropped
from flowledger.every_execution as executions
join public.crewai_flows as flows on flows.id = executions.flow_id
where executions.id = any (%(executions)s) and executions.status in ('completed', 'failed', 'cancelled', 'timeout')

-- name: transitions
-- Every step of one execution, its birth first.
select from_status, to_status, actor, reason, worker_id, fence, at
from flowledger.transitions
where execution_id = %(execution)s
order by seq

-- name: reruns
-- What one execution repeats, and what repeats it.
select execution_id, of_execution, kind, attempt
from flowledger.reruns
where %(execution)s in (execution_id, of_execution)
order by attempt, execution_id
