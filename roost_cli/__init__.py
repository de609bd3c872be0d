"""The `roost` command, one module per subcommand. No other package may import both services and gateway_http."""
