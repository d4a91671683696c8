"""Configuration of a run: options, strict decoding, overrides, and DeepSpeed's JSON."""
