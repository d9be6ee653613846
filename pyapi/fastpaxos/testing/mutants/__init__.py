"""Mutants: planted faults that prove the power of the tests. `catalogue` lists them, `campaign` runs them."""
