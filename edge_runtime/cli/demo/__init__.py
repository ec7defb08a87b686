"""`edge-runtime demo`: the whole system on one machine, three faults, and a report.

Every part is its own process, started from the same command line a person would use. Faults
fire on observed state, never on timers. The counts are those of a separate subscriber process.
"""
