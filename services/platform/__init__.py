"""The platform: what a gRPC service needs whatever its domain. It imports no service, no domain stub and nothing above it."""
