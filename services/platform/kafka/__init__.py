"""The event log on Kafka: producer, consumer groups, dead letters and administration."""
