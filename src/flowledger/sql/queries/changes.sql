-- What has changed, for those who watch: ids and kinds, as far as row-level security shows the executions.

-- name: now
-- How far everything has come.
select pg_current_snapshot()::text as snapshot

-- name: since
-- The first `most` changes that the snapshot did not show, by transaction. One that was under way then stands before those
-- that began later. The transaction `within` was told up to its number `after`. A database that was restored holds
-- numbers of transactions which its server has not come to: they are left out. The first row always has the snapshot.
with now as (
  select pg_current_snapshot() as snapshot
), late as (
  select xid, seq, execution_id, from_status, to_status
  from flowledger.transitions
  where xid = any (array(select pg_snapshot_xip(%(snapshot)s::pg_snapshot)))
    and (%(within)s::text is null or xid <> %(within)s::text::xid8 or seq > %(after)s)
  order by xid, seq
  limit %(most)s
), later as (
  select xid, seq, execution_id, from_status, to_status
  from flowledger.transitions
  where xid >= pg_snapshot_xmax(%(snapshot)s::pg_snapshot) and xid < (select pg_snapshot_xmax(snapshot) from now)
  order by xid, seq
  limit %(most)s
), changes as (
  select * from late union all select * from later
)
select now.snapshot::text as snapshot, changes.xid::text::bigint as xid, changes.seq, changes.execution_id,
       case when changes.from_status is null then 'created' when changes.to_status = 'running' then 'started' else 'ended'
       end as kind
from now
left join changes on true
order by changes.xid, changes.seq
limit %(most)s

-- name: since_of
-- The same of some executions only.
with now as (
  select pg_current_snapshot() as snapshot
), changes as (
  select xid, seq, execution_id, from_status, to_status
  from flowledger.transitions
  where execution_id = any (%(among)s)
    and xid < (select pg_snapshot_xmax(snapshot) from now)
    and not pg_visible_in_snapshot(xid, %(snapshot)s::pg_snapshot)
    and (%(within)s::text is null or xid <> %(within)s::text::xid8 or seq > %(after)s)
)
select now.snapshot::text as snapshot, changes.xid::text::bigint as xid, changes.seq, changes.execution_id,
       case when changes.from_status is null then 'created' when changes.to_status = 'running' then 'started' else 'ended'
       end as kind
from now
left join changes on true
order by changes.xid, changes.seq
limit %(most)s

-- name: whose
-- Whose executions changed since the snapshot, and how many changes were looked at: no more than `most`. For operators.
with now as (
  select pg_current_snapshot() as snapshot
), late as (
  select execution_id
  from flowledger.transitions
  where xid = any (array(select pg_snapshot_xip(%(snapshot)s::pg_snapshot)))
  limit %(most)s
), later as (
  select execution_id
  from flowledger.transitions
  where xid >= pg_snapshot_xmax(%(snapshot)s::pg_snapshot) and xid < (select pg_snapshot_xmax(snapshot) from now)
  limit %(most)s
), changes as (
  select * from late union all select * from later
)
select now.snapshot::text as snapshot,
       (select count(*) from changes) as looked_at,
       array(
         select distinct executions.executed_by
         from changes
         join flowledger.every_execution as executions on executions.id = changes.execution_id
         where executions.executed_by is not null
       ) as users
from now

-- name: heads
-- The last numbers in the timelines and logs of some executions; 0 for nothing, or nothing that the session may see.
select given.execution_id,
       coalesce((select sequence from flowledger.timeline as timeline where timeline.execution_id = given.execution_id
                 order by sequence desc limit 1), 0) as timeline,
       coalesce((select sequence from flowledger.logs as logs where logs.execution_id = given.execution_id
                 order by sequence desc limit 1), 0) as logs
from unnest(%(among)s::uuid[]) as given (execution_id)

-- name: flows
-- What differs when the flows do.
select flowledger.flows_digest() as digest

-- name: watch
-- Asks to be notified of the next change.
select flowledger.watch(%(watcher)s, %(patience)s)

-- name: stop_watching
-- Asks to be notified no more.
select flowledger.stop_watching(%(watcher)s)
