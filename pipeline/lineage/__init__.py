"""Lineage: which samples a run was trained on, and what a removal request touches."""
