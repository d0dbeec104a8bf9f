-- What ended long ago: how much it is, what it holds, and its end. For operators.

-- name: due
-- How many executions are to go, by flow and status.
select flows.flow_key, executions.status, count(*) as executions,
       min(executions.started_at) as first_started_at, max(executions.started_at) as last_started_at
from flowledger.every_execution as executions
join public.crewai_flows as flows on flows.id = executions.flow_id
where executions.status = any (%(statuses)s)
  -- What ended before was started before.
  and executions.started_at < %(ended_before)s
  and coalesce(executions.completed_at, executions.started_at) < %(ended_before)s
group by flows.flow_key, executions.status
order by flows.flow_key, executions.status

-- name: due_ids
-- The next of them, oldest first, after the given place.
select executions.id, executions.started_at
from flowledger.every_execution as executions
where executions.status = any (%(statuses)s)
  and executions.started_at < %(ended_before)s
  and coalesce(executions.completed_at, executions.started_at) < %(ended_before)s
  and (%(after_started_at)s::timestamptz is null
       or (executions.started_at, executions.id) > (%(after_started_at)s, %(after_id)s))
order by executions.started_at, executions.id
limit %(limit)s

-- name: executions
-- Whole rows. JSON as its text, so that no number is changed on its way.
select executions.id, executions.flow_id, executions.execution_key, executions.input_state::text,
       executions.output_state::text, executions.status, executions.error_message, executions.error_stack,
       executions.error_type, executions.started_at, executions.completed_at, executions.duration_ms,
       executions.token_count, executions.cost_usd, executions.board_meeting_id, executions.executed_by,
       executions.execution_mode, executions.metadata::text
from flowledger.every_execution as executions
where executions.id = any (%(executions)s)
order by executions.started_at, executions.id

-- name: timeline
-- Events of these executions.
select execution_id, sequence, at, kind, name, fields::text, parent, began
from flowledger.timeline
where execution_id = any (%(executions)s)
order by execution_id, sequence

-- name: logs
-- What these executions printed.
select execution_id, sequence, at, stream, text
from flowledger.logs
where execution_id = any (%(executions)s)
order by execution_id, sequence

-- name: transitions
-- Every step of these executions.
select seq, execution_id, from_status, to_status, fence, worker_id, actor, reason, at
from flowledger.transitions
where execution_id = any (%(executions)s)
order by seq

-- name: cancel_wishes
-- Who wanted these executions ended.
select execution_id, wished_by, reason, wished_at
from flowledger.cancel_wishes
where execution_id = any (%(executions)s)
order by execution_id

-- name: reruns
-- Which of these executions repeat another.
select execution_id, of_execution, kind, attempt, retries
from flowledger.reruns
where execution_id = any (%(executions)s)
order by execution_id

-- name: usage
-- LLM calls of these executions. Money as its text, so that no digit is lost.
select execution_id, number, sequence, call_id, status, model, provider, step, crew, agent, task, started_at, latency_ms,
       first_token_ms, finish_reason, retries, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens,
       reasoning_tokens, price::text, cost_usd::text, estimated_usd::text, estimated_tokens
from flowledger.usage
where execution_id = any (%(executions)s)
order by execution_id, number

-- name: repricings
-- Later looks at what these executions cost.
select execution_id, repriced_at, repriced_by, old_usd::text, new_usd::text, prices::text
from flowledger.repricings
where execution_id = any (%(executions)s)
order by execution_id, repriced_at

-- name: repriced_calls
-- What calls of these executions cost at later prices.
select execution_id, number, price::text, cost_usd::text
from flowledger.repriced_calls
where execution_id = any (%(executions)s)
order by execution_id, number

-- name: failures
-- How those of these executions failed that did.
select execution_id, fingerprint, failed_at, flow_id, flow_version, error_type, place, message, token_count,
       cost_usd::text
from flowledger.failures
where execution_id = any (%(executions)s)
order by execution_id

-- name: open
-- Notes who deletes what, before anything is deleted.
select flowledger.open_prune(%(statuses)s, %(ended_before)s, %(archive)s) as opened

-- name: prune
-- Deletes these executions, as far as the opened note is about them.
select flowledger.prune(%(opened)s, %(executions)s) as gone
