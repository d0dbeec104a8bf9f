-- Tables that were here before flowledger: counters start at the truth. Old rows stay as they are. Those that say pending
-- are not queued: nobody knows whether they still are meant. Those that say running have no lease, and the first reaper
-- ends them as it ends every execution without a holder.

do $$
begin
  -- Births wait until counting is done.
  lock table public.crewai_flow_executions in share row exclusive mode;
  delete from flowledger.uncounted_executions;
  update public.crewai_flows as flows
  set execution_count = counted.executions
  from (
    select known.id, count(executions.id)::integer as executions
    from public.crewai_flows as known
    left join public.crewai_flow_executions as executions on executions.flow_id = known.id
    group by known.id
  ) as counted
  where counted.id = flows.id and flows.execution_count is distinct from counted.executions;
end
$$;
