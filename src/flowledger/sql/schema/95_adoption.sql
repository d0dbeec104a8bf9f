-- Tables that were here before flowledger: counters and lists start at the truth. Old rows stay as they are. Those that say pending
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
  insert into flowledger.ended_executions (
    execution_id, listed_at, executed_by, flow_id, board_meeting_id, status, execution_mode, error
  )
  select id, least(greatest(coalesce(started_at, '-infinity'), '0002-01-01 00:00Z'), '9999-12-30 00:00Z'), executed_by,
         flow_id, board_meeting_id, status, execution_mode, left(nullif(concat_ws(': ', error_type, error_message), ''), 1000)
  from public.crewai_flow_executions
  where flowledger.is_terminal(status)
  on conflict do nothing;
end
$$;
