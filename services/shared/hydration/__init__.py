"""Ids and a reader in, what the reader may see out: pages of joined tweets and of people, the same for every service that shows some.

It asks the owners over a channel, and keeps nothing that could be out of date. It imports the kit alone.
"""
