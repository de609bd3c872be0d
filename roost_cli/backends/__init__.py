"""Runs the servers of the cluster backend for development and tests: `scripts/backends up|down|status [NAME…]`.

If a Docker engine works, they are the containers of `scripts/compose.yaml`; otherwise the same versions run as local
processes, with jars that Maven downloads once. This package uses only the standard library, because it runs before
anything is installed.
"""
