"""How the ledger's Postgres is reached: connections, identity, migrations, the embedded server, notifications."""
