"""The ports of the event log and of the outbox, and the loops that consumers and relays are made of."""
