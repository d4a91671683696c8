"""The feature cache: outputs of frozen encoders, saved and read back (docs/features.md)."""
