-- Requests that carry an idempotency key.

-- name: answered
-- What the caller's request with this key started.
select execution_id, is_same from flowledger.answered(%(key)s, %(digest)s)

-- name: remember
-- Remembers what the caller's request started.
select flowledger.remember_answer(%(key)s, %(digest)s, %(execution)s)
