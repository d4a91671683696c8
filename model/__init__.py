"""Multimodal LLMs: specs, presets, and the modules built from them."""
