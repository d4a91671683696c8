"""Fusion: how media reach the backbone, as embeddings or inside its layers."""
