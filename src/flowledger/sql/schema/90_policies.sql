-- Who may see and do what. Users create and read their own executions and nothing else; an outcome is written through
-- the functions of 50_lifecycle.sql only. Row-level security is not forced: the owner, as whom those functions run,
-- stands above it.

alter table public.crewai_flows enable row level security;
alter table public.crewai_flow_executions enable row level security;
alter table flowledger.schema_migrations enable row level security;
alter table flowledger.settings enable row level security;
alter table flowledger.workers enable row level security;
alter table flowledger.queue enable row level security;
alter table flowledger.leases enable row level security;
alter table flowledger.cancel_wishes enable row level security;
alter table flowledger.transitions enable row level security;
alter table flowledger.uncounted_executions enable row level security;
alter table flowledger.timeline enable row level security;
alter table flowledger.logs enable row level security;
alter table flowledger.reruns enable row level security;
alter table flowledger.flow_controls enable row level security;
alter table flowledger.prunes enable row level security;
alter table flowledger.usage enable row level security;
alter table flowledger.prices enable row level security;
alter table flowledger.repricings enable row level security;
alter table flowledger.repriced_calls enable row level security;
alter table flowledger.unfolded_spending enable row level security;
alter table flowledger.spending enable row level security;
alter table flowledger.budgets enable row level security;
alter table flowledger.reservations enable row level security;
alter table flowledger.failures enable row level security;
alter table flowledger.tokens enable row level security;
alter table flowledger.logins enable row level security;
alter table flowledger.requests enable row level security;
alter table flowledger.ended_executions enable row level security;
alter table flowledger.watchers enable row level security;

drop policy if exists executions_create on public.crewai_flow_executions;
create policy executions_create on public.crewai_flow_executions
  for insert with check (auth.uid() = executed_by);

drop policy if exists executions_read_own on public.crewai_flow_executions;
create policy executions_read_own on public.crewai_flow_executions
  for select using (auth.uid() = executed_by);

drop policy if exists flows_create_own on public.crewai_flows;
create policy flows_create_own on public.crewai_flows
  for insert with check (auth.uid() = created_by);

drop policy if exists flows_read_active on public.crewai_flows;
create policy flows_read_active on public.crewai_flows
  for select using (status = 'active' or auth.uid() = created_by);

drop policy if exists flows_update_own on public.crewai_flows;
create policy flows_update_own on public.crewai_flows
  for update using (auth.uid() = created_by) with check (auth.uid() = created_by);

drop policy if exists flows_delete_own_draft on public.crewai_flows;
create policy flows_delete_own_draft on public.crewai_flows
  for delete using (auth.uid() = created_by and status = 'draft');

-- Whoever sees an execution sees what belongs to it; the inner select is itself under row-level security.
drop policy if exists transitions_read_own on flowledger.transitions;
create policy transitions_read_own on flowledger.transitions for select using (
  (select flowledger.is_operator())
  or exists (select from public.crewai_flow_executions as executions where executions.id = execution_id));

drop policy if exists cancel_wishes_read_own on flowledger.cancel_wishes;
create policy cancel_wishes_read_own on flowledger.cancel_wishes for select using (
  (select flowledger.is_operator())
  or exists (select from public.crewai_flow_executions as executions where executions.id = execution_id));

drop policy if exists timeline_read_own on flowledger.timeline;
create policy timeline_read_own on flowledger.timeline for select using (
  (select flowledger.is_operator())
  or exists (select from public.crewai_flow_executions as executions where executions.id = execution_id));

drop policy if exists logs_read_own on flowledger.logs;
create policy logs_read_own on flowledger.logs for select using (
  (select flowledger.is_operator())
  or exists (select from public.crewai_flow_executions as executions where executions.id = execution_id));

drop policy if exists reruns_read_own on flowledger.reruns;
create policy reruns_read_own on flowledger.reruns for select using (
  (select flowledger.is_operator())
  or exists (select from public.crewai_flow_executions as executions where executions.id = execution_id));

drop policy if exists usage_read_own on flowledger.usage;
create policy usage_read_own on flowledger.usage for select using (
  (select flowledger.is_operator())
  or exists (select from public.crewai_flow_executions as executions where executions.id = execution_id));

drop policy if exists repricings_read_own on flowledger.repricings;
create policy repricings_read_own on flowledger.repricings for select using (
  (select flowledger.is_operator())
  or exists (select from public.crewai_flow_executions as executions where executions.id = execution_id));

drop policy if exists repriced_calls_read_own on flowledger.repriced_calls;
create policy repriced_calls_read_own on flowledger.repriced_calls for select using (
  (select flowledger.is_operator())
  or exists (select from public.crewai_flow_executions as executions where executions.id = execution_id));

drop policy if exists failures_read_own on flowledger.failures;
create policy failures_read_own on flowledger.failures for select using (
  (select flowledger.is_operator())
  or exists (select from public.crewai_flow_executions as executions where executions.id = execution_id));

drop policy if exists schema_migrations_read on flowledger.schema_migrations;
create policy schema_migrations_read on flowledger.schema_migrations for select using (true);
drop policy if exists settings_read on flowledger.settings;
create policy settings_read on flowledger.settings for select using ((select flowledger.is_operator()));
drop policy if exists settings_change on flowledger.settings;
create policy settings_change on flowledger.settings for update using ((select flowledger.is_operator()));
drop policy if exists workers_read on flowledger.workers;
create policy workers_read on flowledger.workers for select using ((select flowledger.is_operator()));
drop policy if exists queue_read on flowledger.queue;
create policy queue_read on flowledger.queue for select using ((select flowledger.is_operator()));
drop policy if exists leases_read on flowledger.leases;
create policy leases_read on flowledger.leases for select using ((select flowledger.is_operator()));
drop policy if exists flow_controls_read on flowledger.flow_controls;
create policy flow_controls_read on flowledger.flow_controls for select using ((select flowledger.is_operator()));
drop policy if exists prunes_read on flowledger.prunes;
create policy prunes_read on flowledger.prunes for select using ((select flowledger.is_operator()));
drop policy if exists unfolded_spending_read on flowledger.unfolded_spending;
create policy unfolded_spending_read on flowledger.unfolded_spending for select using ((select flowledger.is_operator()));
drop policy if exists spending_read on flowledger.spending;
create policy spending_read on flowledger.spending for select using ((select flowledger.is_operator()));
drop policy if exists budgets_read on flowledger.budgets;
create policy budgets_read on flowledger.budgets for select using ((select flowledger.is_operator()));
drop policy if exists reservations_read on flowledger.reservations;
create policy reservations_read on flowledger.reservations for select using ((select flowledger.is_operator()));
drop policy if exists tokens_read_own on flowledger.tokens;
create policy tokens_read_own on flowledger.tokens for select using (
  (select flowledger.is_operator()) or (select auth.uid()) = user_id);
drop policy if exists requests_read_own on flowledger.requests;
create policy requests_read_own on flowledger.requests
  for select using ((select flowledger.is_operator()) or auth.uid() = user_id);
-- Of users alone, as of the ledger: beside a condition on the same column the planner checks it once and not for each row.
drop policy if exists ended_executions_read_own on flowledger.ended_executions;
create policy ended_executions_read_own on flowledger.ended_executions
  for select using (auth.uid() = executed_by);
drop policy if exists watchers_read on flowledger.watchers;
create policy watchers_read on flowledger.watchers for select using ((select flowledger.is_operator()));
-- What a model costs is no secret.
drop policy if exists prices_read on flowledger.prices;
create policy prices_read on flowledger.prices for select using (true);

-- Every execution, for operators. A view runs with its owner's rights, above the row-level security of the table.
create or replace view flowledger.every_execution as select * from public.crewai_flow_executions;
comment on view flowledger.every_execution is 'crewai_flow_executions as operators see it: the rows of all users.';
create or replace view flowledger.every_ended_execution as select * from flowledger.ended_executions;
comment on view flowledger.every_ended_execution is 'ended_executions as operators see it: the rows of all users.';

-- A platform may have granted everything on new tables; what counts is the list below. Revoking on a table also takes
-- away the rights on its columns, so each grant comes after.
revoke all on public.crewai_flows, public.crewai_flow_executions from public, anon, authenticated, service_role;
revoke all on all tables in schema flowledger from public, anon, authenticated, service_role;
revoke all on all sequences in schema flowledger from public, anon, authenticated, service_role;
revoke all on all functions in schema flowledger from public, anon, authenticated, service_role;
revoke all on function public.calculate_execution_duration(), public.update_flow_execution_count()
  from public, anon, authenticated, service_role;

-- Operators read through every_execution; their right here lets the policies above ask whether a row is visible.
grant select on public.crewai_flow_executions to authenticated, service_role;
grant insert (flow_id, execution_key, input_state, board_meeting_id, executed_by, metadata)
  on public.crewai_flow_executions to authenticated;

grant select on public.crewai_flows to authenticated, service_role;
grant delete on public.crewai_flows to authenticated;
grant insert (flow_key, flow_name, description, flow_definition, python_code, metadata, tags, created_by)
  on public.crewai_flows to authenticated;
grant update (flow_name, description, flow_definition, python_code, metadata, tags, updated_by)
  on public.crewai_flows to authenticated;

grant select on flowledger.requests to authenticated, service_role;
grant select on flowledger.ended_executions to authenticated;
grant select on flowledger.schema_migrations to anon, authenticated, service_role;
grant select on flowledger.transitions, flowledger.cancel_wishes, flowledger.timeline, flowledger.logs, flowledger.reruns,
  flowledger.usage, flowledger.repricings, flowledger.repriced_calls, flowledger.failures, flowledger.prices
  to authenticated, service_role;
grant select on flowledger.every_execution, flowledger.every_ended_execution, flowledger.settings, flowledger.workers,
  flowledger.queue, flowledger.leases,
  flowledger.flow_controls, flowledger.prunes, flowledger.spending, flowledger.unfolded_spending,
  flowledger.spending_now, flowledger.budgets, flowledger.reservations, flowledger.watchers
  to service_role;
grant update (value) on flowledger.settings to service_role;
grant select (id, user_id, name, hint, scopes, created_at, expires_at, last_used_at, revoked_at)
  on flowledger.tokens to authenticated, service_role;

grant execute on function flowledger.kickoff(text, jsonb, uuid, jsonb) to authenticated;
grant execute on function flowledger.answered(text, bytea), flowledger.remember_answer(text, bytea, uuid) to authenticated;
grant execute on function
  flowledger.is_operator(), flowledger.execution_key(text), flowledger.cancel(uuid, text), flowledger.flows_digest()
  to authenticated, service_role;
grant execute on function
  flowledger.claim(uuid, uuid[], double precision[], integer, interval, uuid[]),
  flowledger.renew(uuid, uuid[], bigint[], interval),
  flowledger.finish(uuid, bigint, text, jsonb, text, text, text, integer, numeric, integer, jsonb),
  flowledger.reap(interval, integer),
  flowledger.expire(integer),
  flowledger.set_controls(uuid, jsonb),
  flowledger.pause_flow(uuid, text),
  flowledger.resume_flow(uuid),
  flowledger.open_prune(text[], timestamptz, jsonb),
  flowledger.prune(bigint, uuid[]),
  flowledger.fold_execution_counts(),
  flowledger.remember_flow(text, text, text, jsonb, text),
  flowledger.enlist_worker(uuid, text, integer, text, integer, uuid[]),
  flowledger.discharge_worker(uuid),
  flowledger.append_timeline(uuid[], bigint[], integer[], timestamptz[], text[], text[], jsonb[]),
  flowledger.append_events(uuid[], bigint[], integer[], integer[], integer[], timestamptz[], text[], text[], jsonb[]),
  flowledger.append_logs(uuid[], bigint[], integer[], timestamptz[], text[], text[]),
  flowledger.append_usage(uuid[], bigint[], jsonb[]),
  flowledger.usage_total(uuid),
  flowledger.set_prices(jsonb),
  flowledger.remove_price(text, text, timestamptz),
  flowledger.reprice(uuid[], integer[], jsonb[], numeric[]),
  flowledger.reserve(uuid, bigint, integer, numeric, bigint),
  flowledger.windows(uuid, uuid),
  flowledger.set_budget(text, uuid, uuid, text, numeric, bigint, text),
  flowledger.remove_budget(bigint),
  flowledger.fold_spending(integer),
  flowledger.watch(uuid, interval),
  flowledger.stop_watching(uuid)
  to service_role;
grant execute on function
  flowledger.create_token(text, bytea, text, text[], interval), flowledger.revoke_token(uuid)
  to authenticated, service_role;
grant execute on function flowledger.open_login(uuid, bytea) to service_role;
grant execute on function
  flowledger.redeem_token(bytea), flowledger.redeem_login(bytea, bytea), flowledger.redeem_session(bytea),
  flowledger.end_session(bytea)
  to anon;
