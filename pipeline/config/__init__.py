"""A run's configuration: options, overrides, strict decoding, DeepSpeed's JSON."""
