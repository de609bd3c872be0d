"""Defines the ports of the event log and of outboxes, and the retry and worker loops of consumers and relays."""
