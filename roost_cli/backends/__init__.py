"""Runs the servers of the cluster backend for development and tests: `scripts/backends up|down|status [NAME…]`.

If a Docker engine responds, the servers run as the containers of `scripts/compose.yaml`. Otherwise they run as local
processes, from jars that Maven downloads once. The module `addresses` uses pydantic to read the settings. All other
modules use only the standard library, because they run before any package is installed.
"""
