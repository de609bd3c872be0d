"""The ports of the event log and of the outbox, and the retry and worker loops of consumers and relays."""
