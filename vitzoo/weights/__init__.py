"""Weights: files (read safely), layouts (published names to ours, as data), and `load_checkpoint`, the one door into a model."""
