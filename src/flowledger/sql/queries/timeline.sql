-- What happened inside executions, and what they printed.

-- name: append
-- Adds events of executions that are still held; repeating it adds nothing.
select flowledger.append_events(
  %(executions)s, %(fences)s, %(sequences)s::bigint[]::integer[], %(parents)s::bigint[]::integer[],
  %(begans)s::bigint[]::integer[], %(ats)s, %(kinds)s, %(names)s, %(fields)s::text[]::jsonb[])

-- name: append_logs
-- Adds log text of executions that are still held; repeating it adds nothing.
select flowledger.append_logs(%(executions)s, %(fences)s, %(sequences)s::bigint[]::integer[], %(ats)s, %(streams)s, %(texts)s)

-- name: read
-- Events of one execution after the given sequence number, the first `most` of them.
select sequence, at, kind, name, fields, parent, began
from flowledger.timeline
where execution_id = %(execution)s and sequence > %(after)s
order by sequence
limit %(most)s

-- name: read_logs
-- Log text of one execution after the given sequence number, the first `most` pieces.
select sequence, at, stream, text
from flowledger.logs
where execution_id = %(execution)s and sequence > %(after)s
order by sequence
limit %(most)s
