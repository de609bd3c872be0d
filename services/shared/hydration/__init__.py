"""Hydration: turns ids and a reader into pages of visible tweets and users, for every service that returns tweets or
users.

It calls the services that own the data over a channel, and caches nothing that could be out of date. It imports no
other package of Roost than the platform.
"""
