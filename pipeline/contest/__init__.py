"""Contests: variants of a preset, trained on the same samples in the same steps, and compared."""
