"""The servers that the cluster backend stands on, for development and tests: `scripts/backends up|down|status [NAME…]`.

Where a Docker engine works they are containers of `scripts/compose.yaml`; elsewhere the same versions run as processes of this machine,
their jars collected once by Maven. Only the standard library is needed, so that this runs before anything is installed.
"""
