"""Cached features of frozen parts (docs/features.md)."""
