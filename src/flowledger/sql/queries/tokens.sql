-- Personal tokens of the API. What each may do stands in schema/80_identity.sql.

-- name: create
-- Makes a token of the caller's own; no row: there are as many as there may be.
select id, user_id, name, hint, scopes, created_at, expires_at, last_used_at
from flowledger.create_token(%(name)s, %(sha256)s, %(hint)s, %(scopes)s, %(lasts)s)

-- name: list_of_user, list_of_all
-- Tokens that may be used, newest first.
select id, user_id, name, hint, scopes, created_at, expires_at, last_used_at
from flowledger.tokens
where revoked_at is null and (expires_at is null or expires_at > now())
  and user_id = %(user)s -- own
order by created_at desc, id

-- name: revoke
-- Ends a token.
select flowledger.revoke_token(%(token)s) as revoked

-- name: redeem
-- Whose a token is.
select id, user_id, scopes from flowledger.redeem_token(%(sha256)s)
