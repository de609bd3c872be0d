"""HTTP requests to Protobuf messages and back, compiled once from the descriptors."""
