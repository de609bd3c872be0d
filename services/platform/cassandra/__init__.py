"""The Cassandra driver and what is built on it: keyspaces, migrations, batched writes, the outbox and worker ids."""
