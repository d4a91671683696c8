"""Weights in and out: transformers' checkpoints to run folders and back."""
