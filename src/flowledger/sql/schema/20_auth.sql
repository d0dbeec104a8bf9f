-- auth.uid(), auth.role() and auth.jwt() as Supabase defines them. Skipped where auth.uid() exists: there the platform
-- owns schema auth. After a transaction a custom setting reads '' and not NULL, hence each nullif.

do $platform$
begin
  if to_regprocedure('auth.uid()') is not null then
    return;
  end if;

  create schema if not exists auth;

  create function auth.uid() returns uuid language sql stable as $$
    select coalesce(
      nullif(current_setting('request.jwt.claim.sub', true), ''),
      nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
    )::uuid
  $$;

  create function auth.role() returns text language sql stable as $$
    select coalesce(
      nullif(current_setting('request.jwt.claim.role', true), ''),
      nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role'
    )
  $$;

  create function auth.jwt() returns jsonb language sql stable as $$
    select coalesce(
      nullif(current_setting('request.jwt.claim', true), ''),
      nullif(current_setting('request.jwt.claims', true), '')
    )::jsonb
  $$;

  grant usage on schema auth to anon, authenticated, service_role;
  grant usage on schema public to anon, authenticated, service_role;

  -- Before Postgres 15 everybody could create in public. Only its owner may change that; elsewhere it is so already.
  if pg_has_role((select nspowner from pg_namespace where nspname = 'public'), 'usage') then
    revoke create on schema public from public;
  end if;
end
$platform$;

create schema if not exists flowledger;
revoke all on schema flowledger from public;
grant usage on schema flowledger to anon, authenticated, service_role;

-- Whether the caller operates the ledger: acts as, or logged in with a right to, the service role. Judged by the
-- session and not by current_user, which inside a SECURITY DEFINER function is always the owner.
create or replace function flowledger.is_operator() returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select pg_has_role(
    case current_setting('role') when 'none' then session_user else current_setting('role')::name end,
    'service_role',
    'usage'
  )
$$;
