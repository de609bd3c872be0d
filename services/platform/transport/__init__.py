"""The transports between callers and servicers: gRPC server, in-process and remote channels, batching, discovery and proxy."""
