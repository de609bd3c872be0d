"""The gateway: serves HTTP and JSON by calling gRPC services. Its routes are compiled from the HTTP annotations of the
protos.

The modules serve a request in this order: `app`, `router`, `rpc_route` (verifies the token, applies the rate limit,
decodes the request, calls the service, encodes the response). `server` runs the application on a socket.
"""
