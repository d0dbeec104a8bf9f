-- Logins of the local default: one-time links and the sessions they open. See schema/80_identity.sql.

-- name: open
-- Remembers a link.
select flowledger.open_login(%(user)s, %(link)s)

-- name: redeem
-- Trades a link for a session.
select flowledger.redeem_login(%(link)s, %(session)s) as user_id

-- name: redeem_session
-- Whose a session is.
select flowledger.redeem_session(%(session)s) as user_id

-- name: end_session
-- Ends a session.
select flowledger.end_session(%(session)s) as ended
