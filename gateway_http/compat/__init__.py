"""Serves the RPCs by HTTP protocols other than Roost's own HTTP API, one module per protocol."""
