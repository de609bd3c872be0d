"""How a call reaches a servicer: the gRPC server, the in-process channel, remote channels, batching and discovery."""
