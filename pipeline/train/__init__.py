"""Training under DeepSpeed: from a configuration to a trained run."""
