"""Checkpoints: saved alongside training, verified, and resharded to any number of ranks."""
