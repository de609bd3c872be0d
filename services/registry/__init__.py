"""The mesh service: who runs where, outside Kubernetes.

It owns the registry of instances, in memory: whoever is listed renews its lease, and registers again where that is unknown, so that a
registry which starts anew is complete within one lease. It calls no service, publishes and consumes nothing.
"""
