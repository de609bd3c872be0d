"""The `roost` command, one module a command: the only package that may import both services and gateway_http."""
