-- The three roles that requests run under, by the names that Supabase and PostgREST use. Where they exist, they stay as
-- they are. None needs BYPASSRLS: outcomes go through SECURITY DEFINER functions.

do $$
declare
  name text;
begin
  foreach name in array array['anon', 'authenticated', 'service_role'] loop
    if not exists (select from pg_roles where rolname = name) then
      execute format('create role %I nologin', name);
      -- The installing role may then act as each of them; Postgres 16 and later grant it no more than ADMIN.
      execute format('grant %I to %I', name, current_user);
    end if;
  end loop;
end
$$;
