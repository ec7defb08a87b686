"""The publishing side of signed model repositories: keys, metadata, and packages put in place.

Publishers and operators run it (`edge-runtime models`), and a dispatcher that serves a repository
signs its short-lived metadata again. Deliberately absent: reading a repository over the network,
which is the car's (`edge_runtime.vehicle.models.trust`).
"""
