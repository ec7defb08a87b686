"""What the energy ledger is told and carries: counters of the computer, tables of the pack."""
