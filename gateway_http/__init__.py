"""The gateway: serves HTTP and JSON by calling gRPC services. Its routes are compiled from the HTTP annotations of the protos.

A request passes app → router → rpc_route (token, rate limit, decode, call, encode). `server` binds the application to a socket.
"""
