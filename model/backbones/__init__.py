"""LLM backbones: transformers' classes, called with input embeddings (survey §2.3)."""
