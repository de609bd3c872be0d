"""Converts HTTP requests to Protobuf messages and responses to JSON, by tables compiled once from the descriptors."""
