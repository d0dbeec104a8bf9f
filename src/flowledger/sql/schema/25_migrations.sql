-- Which migrations this database has. Each registers itself at its end, so that one pasted into an SQL editor counts too;
-- the runner then fills in the checksum.

create table if not exists flowledger.schema_migrations (
  version     integer primary key,
  name        text not null,
  sha256      text,
  applied_at  timestamptz not null default now(),
  applied_by  text not null default current_user
);
comment on table flowledger.schema_migrations is 'The migrations that this database has.';
comment on column flowledger.schema_migrations.sha256 is 'Of the file as applied. NULL: applied by hand.';
