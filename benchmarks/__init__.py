"""What a table in docs is made by, with its CSV. Runs from a clone: `python -m benchmarks.NAME` in the root of the repository."""
