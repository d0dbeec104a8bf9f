-- Takes every row out of the ledger; its settings and the list of its migrations stay.
--
-- A truncate makes new files for every table and every index, seventy and more, whether there was a row or not; the few
-- rows of a test are deleted in a tenth of the time. The lock is the one a truncate takes, so that whoever left a
-- transaction open is found.
do $$
declare
    -- Executions before their flows; what belongs to either goes along.
    tables regclass[] := array(
        select pg_class.oid
        from pg_class join pg_namespace on pg_namespace.oid = relnamespace
        where relkind = 'r'
            and (nspname = 'flowledger' and relname not in ('settings', 'schema_migrations')
                or nspname = 'public' and relname in ('crewai_flows', 'crewai_flow_executions'))
        order by relname = 'crewai_flows', relname <> 'crewai_flow_executions');
    names text := array_to_string(tables, ', ');
    emptied regclass;
    counter regclass;
begin
    execute 'lock table ' || names || ' in access exclusive mode';
    if (select sum(pg_relation_size(one)) from unnest(tables) as one) > 1000000 then
        execute 'truncate ' || names;
    else
        foreach emptied in array tables loop
            execute 'delete from ' || emptied;
        end loop;
    end if;
    for counter in
        select objid from pg_depend
        where classid = 'pg_class'::regclass and refclassid = 'pg_class'::regclass and refobjid = any (tables)
            and refobjsubid > 0 and deptype in ('a', 'i')
            and exists (select from pg_class where oid = objid and relkind = 'S')
    loop
        perform setval(counter, 1, false);
    end loop;
end
$$;

update flowledger.settings set value = '10000' where name = 'queue_limit';
