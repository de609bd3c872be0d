"""The transports between callers and servicers.

They are the gRPC server, the in-process and the remote channels, batching, discovery of processes, and the edge proxy.
"""
