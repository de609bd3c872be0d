"""The embedded family's part of the kit: what all its adapters stand on, in one process and one data directory, nothing to install.

It imports the kit and no service. Composition roots and adapters import it.
"""
