"""Sources of signals: this Linux computer, or a simulated car."""
