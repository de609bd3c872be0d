"""Decodes HTTP requests to Protobuf messages, and encodes response messages as JSON, with tables built once from the
descriptors."""
