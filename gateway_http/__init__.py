"""The gateway: HTTP and JSON outside, Protobuf inside, every route compiled from the contract.

A request goes app → router → operation (token, rate limit, decode, call, encode). `server` puts the application on a socket.
"""
