"""Downloading: backends with one interface, safe HTTP, opt-outs, errors and backoff."""
