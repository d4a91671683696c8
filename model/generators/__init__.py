"""Generators: frozen models that draw what they are told, with their own text encoders."""
