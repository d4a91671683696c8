"""Specs of published parts, from their configurations; and systems composed of them."""
