"""The feature cache: outputs of frozen encoders, saved and read back (docs/feature-cache.md)."""
