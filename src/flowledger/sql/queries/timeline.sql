-- What happened inside executions, and what they printed. Arrays are sent in binary (%(..)b): as text, each quotation mark
-- of their JSON would be escaped by the driver, at most of the cost of the whole.

-- name: append
-- Adds events of executions that are still held; repeating it adds nothing.
select flowledger.append_events(
  %(executions)b, %(fences)b::bigint[], %(sequences)b::integer[], %(parents)b::integer[], %(begans)b::integer[], %(ats)b,
  %(kinds)b, %(names)b, %(fields)b::text[]::jsonb[])

-- name: append_logs
-- Adds log text of executions that are still held; repeating it adds nothing.
select flowledger.append_logs(
  %(executions)b, %(fences)b::bigint[], %(sequences)b::integer[], %(ats)b, %(streams)b, %(texts)b)

-- name: read
-- Events of one execution after the given sequence number, of some kinds or all, the first `most` of them.
select sequence, at, kind, name, fields, parent, began
from flowledger.timeline
where execution_id = %(execution)s and sequence > %(after)s
  and (%(kinds)s::text[] is null or kind = any (%(kinds)s::text[]))
order by sequence
limit %(most)s

-- name: read_logs
-- Log text of one execution after the given sequence number, the first `most` pieces.
select sequence, at, stream, text
from flowledger.logs
where execution_id = %(execution)s and sequence > %(after)s
order by sequence
limit %(most)s
