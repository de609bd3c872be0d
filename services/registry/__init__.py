"""The registry service: service discovery outside Kubernetes.

It holds the instances of each service and their addresses in memory. Each instance renews its lease, and registers
again if the registry does not know the lease. So a restarted registry knows all instances again within the duration of
one lease. It calls no service, and publishes and consumes no events.
"""
