"""Readers of corpora in their published formats; all yield candidate tables of one schema."""
