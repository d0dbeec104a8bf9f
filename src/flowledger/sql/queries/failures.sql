-- What failed, by fingerprint, as far as row-level security shows it.

-- name: groups_of_all
-- The latest first, for operators. What was first seen counts from the beginning, everything else from `since` to `until`.
with by_version as (
  select failures.fingerprint, failures.flow_id, failures.flow_version, max(failures.failed_at) as last_seen,
         count(*) as count, sum(failures.token_count) as tokens, sum(failures.cost_usd) as cost_usd,
         count(*) filter (where failures.cost_usd is null) as unpriced
  from flowledger.failures as failures
  where (%(flow)s::uuid is null or failures.flow_id = %(flow)s)
    and (%(since)s::timestamptz is null or failures.failed_at >= %(since)s)
    and (%(until)s::timestamptz is null or failures.failed_at < %(until)s)
  group by failures.fingerprint, failures.flow_id, failures.flow_version
), by_flow as (
  select by_version.fingerprint, coalesce(flows.flow_key, by_version.flow_id::text) as flow_key,
         coalesce(jsonb_agg(by_version.flow_version order by by_version.flow_version)
                    filter (where by_version.flow_version is not null), '[]') as versions,
         max(by_version.last_seen) as last_seen, sum(by_version.count) as count, sum(by_version.tokens) as tokens,
         sum(by_version.cost_usd) as cost_usd, sum(by_version.unpriced) as unpriced
  from by_version
  left join public.crewai_flows as flows on flows.id = by_version.flow_id
  group by by_version.fingerprint, by_version.flow_id, flows.flow_key
), groups as (
  select by_flow.fingerprint, jsonb_object_agg(by_flow.flow_key, by_flow.versions) as flows,
         max(by_flow.last_seen) as last_seen, sum(by_flow.count)::bigint as count, sum(by_flow.tokens)::bigint as tokens,
         sum(by_flow.cost_usd) as cost_usd, sum(by_flow.unpriced)::bigint as unpriced
  from by_flow
  group by by_flow.fingerprint
  order by last_seen desc
  limit %(limit)s
)
select groups.*, earliest.first_seen, latest.*
from groups
cross join lateral (
  select min(failures.failed_at) as first_seen
  from flowledger.failures as failures
  where failures.fingerprint = groups.fingerprint and (%(flow)s::uuid is null or failures.flow_id = %(flow)s)
) as earliest
cross join lateral (
  select failures.execution_id as example, failures.error_type, failures.place, failures.message
  from flowledger.failures as failures
  where failures.fingerprint = groups.fingerprint and (%(flow)s::uuid is null or failures.flow_id = %(flow)s)
    and (%(until)s::timestamptz is null or failures.failed_at < %(until)s)
  order by failures.failed_at desc
  limit 1
) as latest
order by groups.last_seen desc

-- name: groups_of_user
-- The same of one user's own. They are found by the executions, since the policy would be asked for everybody's failures.
with own as (
  select failures.*,
         (%(since)s::timestamptz is null or failures.failed_at >= %(since)s) as counts
  from flowledger.ended_executions as ended
  join flowledger.failures as failures on failures.execution_id = ended.execution_id
  where ended.executed_by = %(user)s
    and ended.status in ('failed', 'timeout')
    and (%(flow)s::uuid is null or failures.flow_id = %(flow)s)
    and (%(until)s::timestamptz is null or failures.failed_at < %(until)s)
), by_flow as (
  select own.fingerprint, coalesce(flows.flow_key, own.flow_id::text) as flow_key,
         coalesce(jsonb_agg(distinct own.flow_version) filter (where own.flow_version is not null), '[]') as versions,
         max(own.failed_at) as last_seen, count(*) as count, sum(own.token_count) as tokens,
         sum(own.cost_usd) as cost_usd, count(*) filter (where own.cost_usd is null) as unpriced
  from own
  left join public.crewai_flows as flows on flows.id = own.flow_id
  where own.counts
  group by own.fingerprint, own.flow_id, flows.flow_key
), groups as (
  select by_flow.fingerprint, jsonb_object_agg(by_flow.flow_key, by_flow.versions) as flows,
         max(by_flow.last_seen) as last_seen, sum(by_flow.count)::bigint as count, sum(by_flow.tokens)::bigint as tokens,
         sum(by_flow.cost_usd) as cost_usd, sum(by_flow.unpriced)::bigint as unpriced
  from by_flow
  group by by_flow.fingerprint
  order by last_seen desc
  limit %(limit)s
), earliest as (
  select own.fingerprint, min(own.failed_at) as first_seen from own group by own.fingerprint
), latest as (
  select distinct on (own.fingerprint)
         own.fingerprint, own.execution_id as example, own.error_type, own.place, own.message
  from own
  order by own.fingerprint, own.failed_at desc
)
select groups.*, earliest.first_seen, latest.example, latest.error_type, latest.place, latest.message
from groups
join earliest using (fingerprint)
join latest using (fingerprint)
order by groups.last_seen desc
