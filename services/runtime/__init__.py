"""A process of the mesh: what it serves, whom it reaches and how, and the order in which it starts and stops.

Services do not know it: they are given channels, and are called. It imports the kit alone.
"""
