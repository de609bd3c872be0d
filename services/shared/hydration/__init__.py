"""Hydration: turns ids and a reader into pages of visible tweets and users, for every service that returns tweets or
users.

It calls the services that own the data over a channel, and uses a cached value only while the versions of what it was
made of are unchanged. It imports no other package of Roost than the platform.
"""
