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

-- name: find_of_user, find_of_all
-- Executions whose id or key begins with the reference, as far as row-level security shows them. A flow that is withdrawn
-- from sight does not take its executions along.
select executions.*, flows.flow_key
from public.crewai_flow_executions as executions
left join public.crewai_flows as flows on flows.id = executions.flow_id
where (executions.id between %(first_id)s and %(last_id)s or executions.execution_key = %(reference)s)
  and executions.executed_by = %(user)s -- own
limit 3

-- name: identify_of_user, identify_of_all
-- The same, but nothing of them except which they are and how far.
select executions.id, executions.status
from public.crewai_flow_executions as executions
where (executions.id between %(first_id)s and %(last_id)s or executions.execution_key = %(reference)s)
  and executions.executed_by = %(user)s -- own
limit 3

-- name: list_of_user, list_of_all
-- A page of the user's executions, newest first, after the given place: which they are and where they stand. Few are
-- active; those that have ended are looked for in a table of their own. No more than so many candidates are searched; the
-- last of them comes back, whether it matches or not, so that the next page begins there.
with active as (
  select executions.id, at.listed_at, null::text as error
  from public.crewai_flow_executions as executions
  cross join lateral (
    select least(greatest(coalesce(executions.started_at, '-infinity'), '0002-01-01 00:00Z'), '9999-12-30 00:00Z')
      as listed_at
  ) as at
  where (executions.status in ('pending', 'running') or executions.status is null)
    and %(search)s::text is null
    and executions.executed_by = %(user)s -- own
    and (%(by)s::uuid is null or executions.executed_by = %(by)s)
    and (%(statuses)s::text[] is null or executions.status = any (%(statuses)s))
    and (%(status)s::text is null or executions.status = %(status)s)
    and (%(flow_key)s::text is null
         or executions.flow_id = (select id from public.crewai_flows where flow_key = %(flow_key)s))
    and (%(mode)s::text is null or executions.execution_mode = %(mode)s)
    and (%(meeting)s::uuid is null or executions.board_meeting_id = %(meeting)s)
    and (%(since)s::timestamptz is null or at.listed_at >= %(since)s)
    and (%(until)s::timestamptz is null or at.listed_at < %(until)s)
    and (%(after_started_at)s::timestamptz is null
         or (at.listed_at, executions.id) < (%(after_started_at)s, %(after_id)s))
  order by at.listed_at desc, executions.id desc
  limit %(candidates)s
), ended as (
  select ended.execution_id as id, ended.listed_at, ended.error
  from flowledger.ended_executions as ended
  where (%(search)s::text is null or ended.error is not null)
    and ended.executed_by = %(user)s -- own
    and (%(by)s::uuid is null or ended.executed_by = %(by)s)
    and (%(statuses)s::text[] is null or ended.status = any (%(statuses)s))
    and (%(status)s::text is null or ended.status = %(status)s)
    and (%(flow_key)s::text is null
         or ended.flow_id = (select id from public.crewai_flows where flow_key = %(flow_key)s))
    and (%(mode)s::text is null or ended.execution_mode = %(mode)s)
    and (%(meeting)s::uuid is null or ended.board_meeting_id = %(meeting)s)
    and (%(since)s::timestamptz is null or ended.listed_at >= %(since)s)
    and (%(until)s::timestamptz is null or ended.listed_at < %(until)s)
    and (%(after_started_at)s::timestamptz is null
         or (ended.listed_at, ended.execution_id) < (%(after_started_at)s, %(after_id)s))
  order by ended.listed_at desc, ended.execution_id desc
  limit %(candidates)s
), candidates as (
  select ranked.*, row_number() over (order by ranked.listed_at desc, ranked.id desc) as rank
  from (select * from active union all select * from ended) as ranked
  order by ranked.listed_at desc, ranked.id desc
  limit %(candidates)s
)
select found.id, found.listed_at, found.matches, found.rank
from (
  select candidates.id, candidates.listed_at, candidates.rank,
         (%(search)s::text is null or candidates.error ilike %(search)s)
         and (%(path)s::text[] is null or exists (
           select from public.crewai_flow_executions as executions
           cross join lateral (
             select case %(root)s
               when 'input_state' then executions.input_state
               when 'output_state' then executions.output_state
               else executions.metadata
             end #> %(path)s as found
           ) as at
           where executions.id = candidates.id
             and executions.executed_by = %(user)s -- own
             and at.found is not null
             and (%(value)s::text is null or coalesce(at.found #>> '{}', 'null') = %(value)s)
         )) as matches
  from candidates
) as found
where found.matches or found.rank = %(candidates)s
order by found.listed_at desc, found.id desc
limit %(limit)s

-- name: rows_of_user, rows_of_all
-- These rows of the user. Of what is larger than so many bytes the size stands there.
select executions.id, executions.flow_id, executions.execution_key, executions.status, executions.error_type,
       case when length(executions.error_message) > %(largest)s then left(executions.error_message, %(largest)s) || '…'
         else executions.error_message end as error_message,
       case when pg_column_size(executions.error_stack) > %(largest)s then right(executions.error_stack, %(largest)s)
         else executions.error_stack end as error_stack,
       case when pg_column_size(executions.input_state) > %(largest)s
         then jsonb_build_object('$large', pg_column_size(executions.input_state)) else executions.input_state end as input_state,
       case when pg_column_size(executions.output_state) > %(largest)s
         then jsonb_build_object('$large', pg_column_size(executions.output_state)) else executions.output_state end as output_state,
       case when pg_column_size(executions.metadata) > %(largest)s
         then jsonb_build_object('$large', pg_column_size(executions.metadata)) else executions.metadata end as metadata,
       executions.started_at, executions.completed_at, executions.duration_ms, executions.token_count, executions.cost_usd,
       executions.board_meeting_id, executions.executed_by, executions.execution_mode, flows.flow_key
from public.crewai_flow_executions as executions
left join public.crewai_flows as flows on flows.id = executions.flow_id
where executions.id = any (%(ids)s)
  and executions.executed_by = %(user)s -- own

-- name: export_of_user, export_of_all
-- The first of these rows, in this order: as many as fit so many bytes, and always one. JSON as its text, so that no
-- number is changed on its way.
with weighed as (
  select executions.*, places.place,
         sum(500 + coalesce(pg_column_size(executions.input_state), 0) + coalesce(pg_column_size(executions.output_state), 0)
             + coalesce(pg_column_size(executions.metadata), 0) + coalesce(pg_column_size(executions.error_message), 0)
             + coalesce(pg_column_size(executions.error_stack), 0)) over (order by places.place) as bytes
  from unnest(%(ids)s::uuid[]) with ordinality as places (id, place)
  join public.crewai_flow_executions as executions on executions.id = places.id
  where executions.executed_by = %(user)s -- own
)
select weighed.id, weighed.flow_id, flows.flow_key, weighed.execution_key, weighed.status, weighed.execution_mode,
       weighed.started_at, weighed.completed_at, weighed.duration_ms, weighed.token_count, weighed.cost_usd,
       weighed.board_meeting_id, weighed.executed_by, weighed.error_type, weighed.error_message, weighed.error_stack,
       weighed.input_state::text, weighed.output_state::text, weighed.metadata::text
from weighed
left join public.crewai_flows as flows on flows.id = weighed.flow_id
where weighed.bytes <= %(most_bytes)s or weighed.place = (select min(first.place) from weighed as first)
order by weighed.place

-- name: states_of_user, states_of_all
-- What went into an execution of the user and what came out, as text.
select executions.input_state::text, executions.output_state::text
from public.crewai_flow_executions as executions
where executions.id = %(execution)s
  and executions.executed_by = %(user)s -- own

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
