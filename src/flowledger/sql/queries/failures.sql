-- What failed, by fingerprint, as far as row-level security shows it.

-- name: groups
-- The latest first. What was first seen counts from the beginning, everything else from `since`.
with by_version as (
  select failures.fingerprint, failures.flow_id, failures.flow_version, max(failures.failed_at) as last_seen,
         count(*) as count, sum(failures.token_count) as tokens, sum(failures.cost_usd) as cost_usd,
         count(*) filter (where failures.cost_usd is null) as unpriced
  from flowledger.failures as failures
  where (%(flow)s::uuid is null or failures.flow_id = %(flow)s)
    and (%(since)s::timestamptz is null or failures.failed_at >= %(since)s)
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
  order by failures.failed_at desc
  limit 1
) as latest
order by groups.last_seen desc
