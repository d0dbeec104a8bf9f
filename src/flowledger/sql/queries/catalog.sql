-- The live catalog as plain rows: first the object, then its facts. Asked with search_path = public, so that names of
-- public stand bare as in the reference document and all others are qualified. Owners' own rights are left out: they
-- follow from ownership.

-- name: look_from_public
-- Until the end of the transaction.
select set_config('search_path', 'public', true);

-- name: our_tables
-- The tables that are ours, and whatever else sits in schema flowledger.
select relation.oid as table_oid,
       spaces.nspname as schema,
       relation.relname as name,
       obj_description(relation.oid, 'pg_class') as description,
       relation.relrowsecurity as row_security,
       relation.relforcerowsecurity as row_security_forced,
       coalesce((select string_agg(option, ', ' order by option) from unnest(relation.reloptions) as option), '') as options
from pg_class as relation
join pg_namespace as spaces on spaces.oid = relation.relnamespace
where relation.relkind in ('r', 'p', 'f')
  and (spaces.nspname = 'flowledger'
       or spaces.nspname = 'public' and relation.relname in ('crewai_flows', 'crewai_flow_executions'))
order by spaces.nspname <> 'public', relation.relname;

-- name: columns
-- The columns of the tables, in their order.
select attributes.attrelid as table_oid,
       attributes.attname as name,
       attributes.atttypid::regtype::text as base_type,
       format_type(attributes.atttypid, attributes.atttypmod) as type,
       attributes.atttypmod as type_modifier,
       not attributes.attnotnull as nullable,
       case attributes.attgenerated
         when '' then pg_get_expr(defaults.adbin, defaults.adrelid)
         else 'generated as ' || pg_get_expr(defaults.adbin, defaults.adrelid)
       end as default,
       case attributes.attidentity when 'a' then 'always' when 'd' then 'by default' end as identity,
       col_description(attributes.attrelid, attributes.attnum) as description
from pg_attribute as attributes
left join pg_attrdef as defaults on defaults.adrelid = attributes.attrelid and defaults.adnum = attributes.attnum
where attributes.attrelid = any (%(tables)s) and attributes.attnum > 0 and not attributes.attisdropped
order by attributes.attrelid, attributes.attnum;

-- name: constraints
-- Primary keys, foreign keys, unique constraints, checks; Postgres 18 also lists NOT NULL, which the columns say already.
select constraints.conrelid as table_oid,
       constraints.conname as name,
       constraints.contype::text as kind,
       pg_get_constraintdef(constraints.oid) as definition,
       constraints.convalidated as validated,
       (select string_agg(attributes.attname, ', ' order by keys.place)
        from unnest(constraints.conkey) with ordinality as keys (number, place)
        join pg_attribute as attributes
          on attributes.attrelid = constraints.conrelid and attributes.attnum = keys.number) as columns,
       constraints.confrelid::regclass::text as foreign_table,
       (select string_agg(attributes.attname, ', ' order by keys.place)
        from unnest(constraints.confkey) with ordinality as keys (number, place)
        join pg_attribute as attributes
          on attributes.attrelid = constraints.confrelid and attributes.attnum = keys.number) as foreign_columns
from pg_constraint as constraints
where constraints.conrelid = any (%(tables)s) and constraints.contype in ('p', 'f', 'u', 'c', 'x')
order by constraints.conrelid, array_position(array['p', 'f', 'u', 'c', 'x']::"char"[], constraints.contype), constraints.conname;

-- name: stand_in
-- A table like the given one, for questions.
create temporary table stand_in (like {table}) on commit drop;

-- name: give_back
-- The definition of a check, for Postgres to read.
alter table pg_temp.stand_in add constraint given_back {definition};

-- name: given_back
-- What Postgres has understood.
select pg_get_constraintdef(constraints.oid) as name
from pg_constraint as constraints
where constraints.conrelid = 'pg_temp.stand_in'::regclass and constraints.conname = 'given_back';

-- name: indexes
-- The indexes of the tables; one that is not valid answers no query.
select indexes.indrelid as table_oid,
       relation.relname as name,
       pg_get_indexdef(indexes.indexrelid) as definition,
       indexes.indisvalid as valid
from pg_index as indexes
join pg_class as relation on relation.oid = indexes.indexrelid
where indexes.indrelid = any (%(tables)s)
order by indexes.indrelid, relation.relname;

-- name: policies
-- The row-level security policies of the tables.
select policies.polrelid as table_oid,
       policies.polname as name,
       case policies.polcmd when 'r' then 'SELECT' when 'a' then 'INSERT' when 'w' then 'UPDATE' when 'd' then 'DELETE'
         else 'ALL' end as command,
       policies.polpermissive as permissive,
       case when policies.polroles = array[0::oid] then '{public}'
         else (select array_agg(roles.rolname order by roles.rolname)::text
               from pg_roles as roles where roles.oid = any (policies.polroles)) end as roles,
       pg_get_expr(policies.polqual, policies.polrelid) as using,
       pg_get_expr(policies.polwithcheck, policies.polrelid) as with_check
from pg_policy as policies
where policies.polrelid = any (%(tables)s)
order by policies.polrelid, policies.polname;

-- name: triggers
-- The triggers of the tables. `shown` is what the reference document prints; the definition has WHEN and level too.
select triggers.tgrelid as table_oid,
       triggers.tgname as name,
       case when triggers.tgtype & 2 > 0 then 'BEFORE' when triggers.tgtype & 64 > 0 then 'INSTEAD OF' else 'AFTER' end
         as timing,
       array_remove(array[
         case when triggers.tgtype & 8 > 0 then 'DELETE' end,
         case when triggers.tgtype & 4 > 0 then 'INSERT' end,
         case when triggers.tgtype & 32 > 0 then 'TRUNCATE' end,
         case when triggers.tgtype & 16 > 0 then 'UPDATE' end
       ], null) as events,
       substring(pg_get_triggerdef(triggers.oid) from 'EXECUTE FUNCTION .*') as action,
       pg_get_triggerdef(triggers.oid) as definition,
       triggers.tgenabled = 'O' as enabled
from pg_trigger as triggers
where triggers.tgrelid = any (%(tables)s) and not triggers.tgisinternal
order by triggers.tgrelid, triggers.tgname;

-- name: rules
-- Rewrite rules, of which a table of ours has none.
select rules.ev_class as table_oid, rules.rulename as name, pg_get_ruledef(rules.oid) as definition
from pg_rewrite as rules
where rules.ev_class = any (%(tables)s)
order by rules.ev_class, rules.rulename;

-- name: views
-- The views of schema flowledger.
select spaces.nspname || '.' || relation.relname as name,
       pg_get_viewdef(relation.oid) as definition,
       coalesce(array_to_string(relation.reloptions, ', '), '') as options,
       obj_description(relation.oid, 'pg_class') as description
from pg_class as relation
join pg_namespace as spaces on spaces.oid = relation.relnamespace
where relation.relkind in ('v', 'm') and spaces.nspname = 'flowledger'
order by 1;

-- name: sequences
-- The sequences of schema flowledger; those of identity columns included.
select spaces.nspname || '.' || relation.relname as name,
       format_type(sequences.seqtypid, null) as type,
       sequences.seqstart as start,
       sequences.seqincrement as increment,
       sequences.seqcycle as cycles
from pg_sequence as sequences
join pg_class as relation on relation.oid = sequences.seqrelid
join pg_namespace as spaces on spaces.oid = relation.relnamespace
where spaces.nspname = 'flowledger'
order by 1;

-- name: functions
-- The functions of schema flowledger and the two trigger functions that the reference document names.
select spaces.nspname || '.' || functions.proname || '(' || pg_get_function_identity_arguments(functions.oid) || ')' as name,
       pg_get_function_arguments(functions.oid) as arguments,
       pg_get_function_result(functions.oid) as result,
       languages.lanname as language,
       functions.prosecdef as security_definer,
       case functions.provolatile when 'i' then 'immutable' when 's' then 'stable' else 'volatile' end as volatility,
       functions.proisstrict as strict,
       coalesce(array_to_string(functions.proconfig, '; '), '') as settings,
       encode(sha256(convert_to(replace(functions.prosrc, e'\r\n', e'\n'), 'UTF8')), 'hex') as body
from pg_proc as functions
join pg_namespace as spaces on spaces.oid = functions.pronamespace
join pg_language as languages on languages.oid = functions.prolang
where spaces.nspname = 'flowledger'
   or spaces.nspname = 'public'
      and functions.oid in (to_regprocedure('public.calculate_execution_duration()'),
                            to_regprocedure('public.update_flow_execution_count()'))
order by 1;

-- name: grants
-- Who else than the owner may do what, on schema flowledger and on everything of ours.
with objects as (
  select 'schema' as kind, spaces.nspname::text as name, spaces.nspowner as owner,
         coalesce(spaces.nspacl, acldefault('n', spaces.nspowner)) as rights
  from pg_namespace as spaces
  where spaces.nspname = 'flowledger'
  union all
  select case relation.relkind when 'S' then 'sequence' when 'v' then 'view' else 'table' end,
         spaces.nspname || '.' || relation.relname, relation.relowner,
         coalesce(relation.relacl, acldefault(case relation.relkind when 'S' then 's' else 'r' end::"char", relation.relowner))
  from pg_class as relation
  join pg_namespace as spaces on spaces.oid = relation.relnamespace
  where relation.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
    and (spaces.nspname = 'flowledger' or relation.oid = any (%(tables)s))
  union all
  select 'column', spaces.nspname || '.' || relation.relname || '.' || attributes.attname, relation.relowner,
         attributes.attacl
  from pg_attribute as attributes
  join pg_class as relation on relation.oid = attributes.attrelid
  join pg_namespace as spaces on spaces.oid = relation.relnamespace
  where attributes.attacl is not null and not attributes.attisdropped
    and (spaces.nspname = 'flowledger' or relation.oid = any (%(tables)s))
  union all
  select 'function',
         spaces.nspname || '.' || functions.proname || '(' || pg_get_function_identity_arguments(functions.oid) || ')',
         functions.proowner, coalesce(functions.proacl, acldefault('f', functions.proowner))
  from pg_proc as functions
  join pg_namespace as spaces on spaces.oid = functions.pronamespace
  where spaces.nspname = 'flowledger'
     or functions.oid in (to_regprocedure('public.calculate_execution_duration()'),
                          to_regprocedure('public.update_flow_execution_count()'))
)
select objects.kind || ' ' || objects.name || ' to ' || coalesce(roles.rolname, 'public') as name,
       string_agg(rights.privilege_type || case when rights.is_grantable then ' with grant option' else '' end,
                  ', ' order by rights.privilege_type) as privileges
from objects
cross join aclexplode(objects.rights) as rights
left join pg_roles as roles on roles.oid = rights.grantee
where rights.grantee <> objects.owner and not coalesce(roles.rolsuper, false)
group by objects.kind, objects.name, roles.rolname
order by 1;

-- name: foreign_uses_of_our_trigger_functions
-- Triggers on other tables that call a function by the name of one of ours.
select triggers.tgname || ' on ' || triggers.tgrelid::regclass as name
from pg_trigger as triggers
where not triggers.tgisinternal
  and triggers.tgfoid in (to_regprocedure('public.calculate_execution_duration()'),
                          to_regprocedure('public.update_flow_execution_count()'))
  and triggers.tgrelid <> all (array[to_regclass('public.crewai_flow_executions')]::oid[]);

-- name: anything_in_schema_flowledger
-- Relations and functions that sit where ours would be made.
select relation.relname::text as name
from pg_class as relation
where relation.relnamespace = to_regnamespace('flowledger') and relation.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
union
select functions.proname || '()'
from pg_proc as functions
where functions.pronamespace = to_regnamespace('flowledger')
order by 1;

-- name: row_count
-- Answers for one table, as its owner.
select count(*) from {table};
