"""Features of frozen parts, made once and kept: docs/features.md."""
