-- For the negative control: the ledger without its law. The update trigger allows anything and still writes down what
-- was done; finish() asks for neither fence nor status.

create or replace function public.calculate_execution_duration() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  lease flowledger.leases;
begin
  delete from flowledger.queue where execution_id = new.id;
  if flowledger.is_terminal(new.status) then
    delete from flowledger.leases where execution_id = new.id returning * into lease;
    new.completed_at = clock_timestamp();
    new.duration_ms = case old.status when 'pending' then null
      else extract(epoch from new.completed_at - new.started_at) * 1000 end;
  else
    select * into lease from flowledger.leases where execution_id = new.id;
  end if;
  insert into flowledger.transitions (execution_id, from_status, to_status, fence, worker_id, actor)
  values (new.id, old.status, new.status, lease.fence, lease.worker_id,
          coalesce(nullif(current_setting('flowledger.actor', true), ''), flowledger.caller()));
  return new;
end
$$;

create or replace function flowledger.finish(
  execution uuid, fence bigint, status text, output_state jsonb, error_type text, error_message text, error_stack text,
  token_count integer, cost_usd numeric, began_after_ms integer, metadata jsonb
) returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform set_config('flowledger.actor', 'worker', true);
  update public.crewai_flow_executions as executions
  set status = finish.status, output_state = finish.output_state, error_type = finish.error_type,
      error_message = finish.error_message, error_stack = finish.error_stack, metadata = finish.metadata
  where executions.id = execution;
  return 'ok';
end
$$;
