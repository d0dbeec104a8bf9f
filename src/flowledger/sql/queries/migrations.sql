-- name: take_turns
-- One migrating process at a time, until the end of the transaction.
select pg_advisory_xact_lock(hashtextextended('flowledger.migrate', 0));

-- name: is_installed
-- Whether this database keeps a list of migrations.
select to_regclass('flowledger.schema_migrations') is not null;

-- name: applied
-- The migrations that this database has.
select version, name, sha256 from flowledger.schema_migrations order by version;

-- name: latest
-- The number of the last migration; 0 when there is none.
select coalesce(max(version), 0) as version from flowledger.schema_migrations;

-- name: record_checksum
-- Notes what was applied.
update flowledger.schema_migrations set sha256 = %(sha256)s where version = %(version)s and sha256 is null;
