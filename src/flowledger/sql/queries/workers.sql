-- The processes that carry executions.

-- name: enlist
-- A worker makes itself and its flows known; again, when its flows change.
select flowledger.enlist_worker(%(worker)s, %(host)s, %(pid)s, %(version)s, %(slots)s, %(flows)s)

-- name: discharge
-- A worker takes its leave.
select flowledger.discharge_worker(%(worker)s)

-- name: serving
-- How many workers that run this flow were heard of within `since`.
select count(*) as workers
from flowledger.workers
where %(flow)s = any (flow_ids) and seen_at > clock_timestamp() - %(since)s
