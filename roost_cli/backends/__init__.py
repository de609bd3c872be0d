"""Runs the servers of the cluster backend for development and tests: `scripts/backends up|down|status [NAME…]`.

If a Docker engine answers, the servers run as the containers of `scripts/compose.yaml`. Otherwise they run as local
processes, from jars that Maven downloads once. `addresses` reads the settings; all other modules use only the standard
library, because they run before anything is installed.
"""
