"""The registry service: service discovery outside Kubernetes.

It holds the instances of each service and their addresses in memory. Each instance renews its lease, and registers
again if its lease is unknown, so a restarted registry is complete within one lease time. It calls no service, and
publishes and consumes no events.
"""
