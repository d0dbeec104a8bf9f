-- Migration 0004, 2026-11-27. May be pasted into an SQL editor, and repeated.
--
-- Personal tokens, and logins of the local default. What each is for stands in the schema's own files.

-- =====================================================================================================================
-- 80_identity.sql

create table if not exists flowledger.tokens (
  id            uuid primary key default gen_random_uuid(),
  user_id       uuid not null,
  name          text not null,
  sha256        bytea not null unique,
  hint          text not null,
  scopes        text[] not null,
  created_at    timestamptz not null default now(),
  expires_at    timestamptz,
  last_used_at  timestamptz,
  revoked_at    timestamptz,
  constraint name_has_1_to_100_characters check (length(name) between 1 and 100),
  constraint sha256_has_32_bytes check (octet_length(sha256) = 32),
  constraint hint_is_short check (length(hint) <= 12),
  constraint scopes_are_read_run_operate
    check (scopes <@ array['read', 'run', 'operate'] and cardinality(scopes) between 1 and 3),
  constraint expires_at_is_after_created_at check (expires_at > created_at)
);
comment on table flowledger.tokens is 'Personal tokens of the API. What a token says was shown once; its digest is kept.';
comment on column flowledger.tokens.hint is 'How the token begins.';
comment on column flowledger.tokens.scopes is 'read: see; run: start and cancel; operate: as an operator.';
comment on column flowledger.tokens.expires_at is 'NULL: when it is revoked.';
comment on column flowledger.tokens.last_used_at is 'To the minute.';
create unique index if not exists one_living_token_of_each_name on flowledger.tokens (user_id, name)
  where revoked_at is null;

create table if not exists flowledger.logins (
  id                  bigint generated always as identity primary key,
  user_id             uuid not null,
  link_sha256         bytea not null unique,
  link_expires_at     timestamptz not null,
  session_sha256      bytea unique,
  session_expires_at  timestamptz,
  constraint digests_have_32_bytes check (octet_length(link_sha256) = 32 and octet_length(session_sha256) = 32),
  constraint a_session_expires check ((session_sha256 is null) = (session_expires_at is null))
);
comment on table flowledger.logins is 'One-time links of `flowledger up`, and the browser sessions that they opened.';
comment on column flowledger.logins.session_sha256 is 'NULL: the link was not opened yet.';

-- Makes a token of the caller's own. No row: the caller has 100 already. A token makes no other, so that a stolen one
-- ends with its revocation; and only operators give the scope that makes one.
create or replace function flowledger.create_token(
  token_name text, digest bytea, token_hint text, token_scopes text[], lasts interval
) returns table (
  id uuid, user_id uuid, name text, hint text, scopes text[], created_at timestamptz, expires_at timestamptz,
  last_used_at timestamptz
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  me uuid := auth.uid();
begin
  if me is null then
    raise exception 'a token belongs to a user, and the caller is none' using errcode = '42501';
  end if;
  if auth.jwt() ->> 'token' is not null then
    raise exception 'a token makes no other token' using errcode = '42501';
  end if;
  if 'operate' = any (token_scopes) and not flowledger.is_operator() then
    raise exception 'only operators give the scope operate' using errcode = '42501';
  end if;

  -- Counting and making must not interleave.
  perform pg_advisory_xact_lock(hashtextextended('flowledger.tokens ' || me, 0));
  -- A name is free again when its token has expired.
  update flowledger.tokens as known
  set revoked_at = known.expires_at
  where known.user_id = me and known.revoked_at is null and known.expires_at <= clock_timestamp();
  if (select count(*) from flowledger.tokens as known where known.user_id = me and known.revoked_at is null) >= 100 then
    return;
  end if;

  return query
    insert into flowledger.tokens as made (user_id, name, sha256, hint, scopes, expires_at)
    values (me, token_name, digest, token_hint, token_scopes, now() + lasts)
    returning made.id, made.user_id, made.name, made.hint, made.scopes, made.created_at, made.expires_at,
              made.last_used_at;
end
$$;

-- Ends a token, the caller's own or, for operators, anybody's. Answers whether there was one to end.
create or replace function flowledger.revoke_token(token uuid) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update flowledger.tokens as known
  set revoked_at = clock_timestamp()
  where known.id = token and known.revoked_at is null and (flowledger.is_operator() or known.user_id = auth.uid());
  return found;
end
$$;

-- Whose a token is, and what it may do. No row: it is unknown, has expired or was revoked.
create or replace function flowledger.redeem_token(digest bytea) returns table (id uuid, user_id uuid, scopes text[])
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  update flowledger.tokens as known
  set last_used_at = clock_timestamp()
  where known.sha256 = digest and known.revoked_at is null
    and (known.last_used_at is null or known.last_used_at < clock_timestamp() - interval '1 minute');
  return query
    select known.id, known.user_id, known.scopes
    from flowledger.tokens as known
    where known.sha256 = digest
      and known.revoked_at is null
      and (known.expires_at is null or known.expires_at > clock_timestamp());
end
$$;

-- Remembers a link that lets a browser in as this user, once, within 10 minutes.
create or replace function flowledger.open_login(for_user uuid, link bytea) returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  delete from flowledger.logins as known
  where coalesce(known.session_expires_at, known.link_expires_at) < clock_timestamp();
  insert into flowledger.logins (user_id, link_sha256, link_expires_at)
  values (for_user, link, clock_timestamp() + interval '10 minutes');
$$;

-- Trades a link for a session of 30 days. NULL: the link is unknown, too old or was opened before.
create or replace function flowledger.redeem_login(link bytea, session bytea) returns uuid
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
  update flowledger.logins as known
  set session_sha256 = session, session_expires_at = clock_timestamp() + interval '30 days'
  where known.link_sha256 = link and known.session_sha256 is null and known.link_expires_at > clock_timestamp()
  returning known.user_id
$$;

-- Whose a session is. NULL: it is unknown, too old or was ended.
create or replace function flowledger.redeem_session(session bytea) returns uuid
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select known.user_id
  from flowledger.logins as known
  where known.session_sha256 = session and known.session_expires_at > clock_timestamp()
$$;

-- Ends a session. Answers whether there was one.
create or replace function flowledger.end_session(session bytea) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update flowledger.logins as known
  set session_expires_at = clock_timestamp()
  where known.session_sha256 = session and known.session_expires_at > clock_timestamp();
  return found;
end
$$;

-- =====================================================================================================================
-- 90_policies.sql

alter table flowledger.tokens enable row level security;
alter table flowledger.logins enable row level security;

drop policy if exists tokens_read_own on flowledger.tokens;
create policy tokens_read_own on flowledger.tokens for select using (
  (select flowledger.is_operator()) or (select auth.uid()) = user_id);

-- A platform may have granted everything on new tables, and Postgres lets everybody execute new functions; what counts is
-- the list below.
revoke all on flowledger.tokens, flowledger.logins from public, anon, authenticated, service_role;
revoke all on all sequences in schema flowledger from public, anon, authenticated, service_role;
revoke all on function
  flowledger.create_token(text, bytea, text, text[], interval),
  flowledger.revoke_token(uuid),
  flowledger.redeem_token(bytea),
  flowledger.open_login(uuid, bytea),
  flowledger.redeem_login(bytea, bytea),
  flowledger.redeem_session(bytea),
  flowledger.end_session(bytea)
  from public, anon, authenticated, service_role;

grant select (id, user_id, name, hint, scopes, created_at, expires_at, last_used_at, revoked_at)
  on flowledger.tokens to authenticated, service_role;
grant execute on function
  flowledger.create_token(text, bytea, text, text[], interval), flowledger.revoke_token(uuid)
  to authenticated, service_role;
grant execute on function flowledger.open_login(uuid, bytea) to service_role;
grant execute on function
  flowledger.redeem_token(bytea), flowledger.redeem_login(bytea, bytea), flowledger.redeem_session(bytea),
  flowledger.end_session(bytea)
  to anon;

insert into flowledger.schema_migrations (version, name) values (4, 'identity') on conflict do nothing;
