"""Generators: frozen models that generate media from conditions, with their own text encoders."""
