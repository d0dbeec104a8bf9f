-- What was spent, by day: sums that stay when executions are pruned, and that a month of a million executions is read
-- from at once. New amounts are appended, and folded into the sums now and then, so that runs do not wait for each other.

create table if not exists flowledger.unfolded_spending (
  day                  date not null,
  flow_id              uuid not null,
  executed_by          uuid,
  execution_mode       text,
  board_meeting_id     uuid,
  model                text,
  executions           bigint not null default 0,
  failed               bigint not null default 0,
  calls                bigint not null default 0,
  failed_calls         bigint not null default 0,
  unknown_calls        bigint not null default 0,
  unpriced_calls       bigint not null default 0,
  input_tokens         bigint not null default 0,
  cached_input_tokens  bigint not null default 0,
  cache_write_tokens   bigint not null default 0,
  output_tokens        bigint not null default 0,
  reasoning_tokens     bigint not null default 0,
  cost_usd             numeric not null default 0,
  estimated_usd        numeric not null default 0,
  estimated_tokens     bigint not null default 0,
  repriced_usd         numeric not null default 0
) with (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);
comment on table flowledger.unfolded_spending is 'Amounts not yet added to flowledger.spending.';
comment on column flowledger.unfolded_spending.model is 'NULL: the end of an execution, not a call.';

create table if not exists flowledger.spending (
  dimension            text not null,
  day                  date not null,
  key                  text not null,
  executions           bigint not null default 0,
  failed               bigint not null default 0,
  calls                bigint not null default 0,
  failed_calls         bigint not null default 0,
  unknown_calls        bigint not null default 0,
  unpriced_calls       bigint not null default 0,
  input_tokens         bigint not null default 0,
  cached_input_tokens  bigint not null default 0,
  cache_write_tokens   bigint not null default 0,
  output_tokens        bigint not null default 0,
  reasoning_tokens     bigint not null default 0,
  cost_usd             numeric not null default 0,
  estimated_usd        numeric not null default 0,
  estimated_tokens     bigint not null default 0,
  repriced_usd         numeric not null default 0,
  constraint spending_pkey primary key (dimension, day, key),
  constraint dimension_is_known check (dimension in ('flow', 'user', 'model', 'mode', 'meeting'))
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
comment on table flowledger.spending is 'Executions, calls, tokens and money by UTC day, along five dimensions. Each holds the whole.';
comment on column flowledger.spending.day is 'Of a call: when it began. Of an execution: when it ended.';
comment on column flowledger.spending.key is 'Id of the flow, user or meeting, name of the model or mode. Empty: none.';
comment on column flowledger.spending.failed is 'Executions that ended as failed or timeout.';
comment on column flowledger.spending.unknown_calls is 'Calls that nobody reported tokens of, failed ones left out.';
comment on column flowledger.spending.unpriced_calls is
  'Calls whose tokens are known and whose price is not, not even by a later one: cost_usd and repriced_usd lack them.';
comment on column flowledger.spending.estimated_usd is
  'What was set aside for calls that nobody knows the cost of: it counts in windows and never as a cost.';
comment on column flowledger.spending.estimated_tokens is 'The same of calls that nobody reported tokens of.';
comment on column flowledger.spending.repriced_usd is 'What later prices add to cost_usd, or take from it.';
create index if not exists spending_of_key on flowledger.spending (dimension, key, day);

-- Amounts along each dimension, folded or not.
create or replace view flowledger.spending_now as
  select * from flowledger.spending
  union all
  select along.dimension, waiting.day,
         case along.dimension
           when 'flow' then waiting.flow_id::text
           when 'user' then coalesce(waiting.executed_by::text, '')
           when 'mode' then coalesce(waiting.execution_mode, '')
           when 'meeting' then coalesce(waiting.board_meeting_id::text, '')
           else coalesce(waiting.model, '')
         end,
         waiting.executions, waiting.failed, waiting.calls, waiting.failed_calls, waiting.unknown_calls,
         waiting.unpriced_calls, waiting.input_tokens, waiting.cached_input_tokens, waiting.cache_write_tokens,
         waiting.output_tokens, waiting.reasoning_tokens, waiting.cost_usd, waiting.estimated_usd,
         waiting.estimated_tokens, waiting.repriced_usd
  -- In this order, so that whoever asks for one dimension makes nothing of the others.
  from (values ('flow'), ('user'), ('mode'), ('meeting'), ('model')) as along (dimension)
  cross join flowledger.unfolded_spending as waiting;
comment on view flowledger.spending_now is 'flowledger.spending with what is not yet folded into it: sum over its rows.';

-- Adds what was appended to the sums. Any number of callers at a time; each amount is added once.
create or replace function flowledger.fold_spending(most integer default 10000) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  folded bigint;
begin
  with gone as (
    delete from flowledger.unfolded_spending
    where ctid = any (array(select ctid from flowledger.unfolded_spending limit most for update skip locked))
    returning *
  ), added as (
    insert into flowledger.spending as known (
      dimension, day, key, executions, failed, calls, failed_calls, unknown_calls, unpriced_calls, input_tokens,
      cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_usd, estimated_usd,
      estimated_tokens, repriced_usd
    )
    select along.dimension, gone.day, along.key, sum(gone.executions), sum(gone.failed), sum(gone.calls),
           sum(gone.failed_calls), sum(gone.unknown_calls), sum(gone.unpriced_calls), sum(gone.input_tokens),
           sum(gone.cached_input_tokens), sum(gone.cache_write_tokens), sum(gone.output_tokens),
           sum(gone.reasoning_tokens), sum(gone.cost_usd), sum(gone.estimated_usd), sum(gone.estimated_tokens),
           sum(gone.repriced_usd)
    from gone
    cross join lateral (values
      ('flow', gone.flow_id::text),
      ('user', coalesce(gone.executed_by::text, '')),
      ('mode', coalesce(gone.execution_mode, '')),
      ('meeting', coalesce(gone.board_meeting_id::text, '')),
      ('model', coalesce(gone.model, ''))
    ) as along (dimension, key)
    group by along.dimension, gone.day, along.key
    -- One order for all, so that callers cannot deadlock.
    order by along.dimension, gone.day, along.key
    on conflict (dimension, day, key) do update
    set executions = known.executions + excluded.executions,
        failed = known.failed + excluded.failed,
        calls = known.calls + excluded.calls,
        failed_calls = known.failed_calls + excluded.failed_calls,
        unknown_calls = known.unknown_calls + excluded.unknown_calls,
        unpriced_calls = known.unpriced_calls + excluded.unpriced_calls,
        input_tokens = known.input_tokens + excluded.input_tokens,
        cached_input_tokens = known.cached_input_tokens + excluded.cached_input_tokens,
        cache_write_tokens = known.cache_write_tokens + excluded.cache_write_tokens,
        output_tokens = known.output_tokens + excluded.output_tokens,
        reasoning_tokens = known.reasoning_tokens + excluded.reasoning_tokens,
        cost_usd = known.cost_usd + excluded.cost_usd,
        estimated_usd = known.estimated_usd + excluded.estimated_usd,
        estimated_tokens = known.estimated_tokens + excluded.estimated_tokens,
        repriced_usd = known.repriced_usd + excluded.repriced_usd
  )
  select count(*) into folded from gone;
  return folded;
end
$$;

-- Called at the end of an execution.
create or replace function flowledger.count_ended(ended public.crewai_flow_executions) returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
  insert into flowledger.unfolded_spending (
    day, flow_id, executed_by, execution_mode, board_meeting_id, executions, failed
  )
  values ((ended.completed_at at time zone 'UTC')::date, ended.flow_id, ended.executed_by, ended.execution_mode,
          ended.board_meeting_id, 1, (ended.status in ('failed', 'timeout'))::integer)
$$;
