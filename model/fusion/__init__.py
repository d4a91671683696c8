"""Fusion: media enter the backbone as token embeddings or inside its layers."""
