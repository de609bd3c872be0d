"""Uses the Cassandra driver for keyspaces, migrations, batched writes, the outbox and worker ids."""
