"""Data sets that are built on this machine, from data that comes inside ordinary packages."""
