"""A seeded world: the production cores and shells in virtual time, with everything that fails."""
