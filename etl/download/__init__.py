"""Downloading: backends behind one interface, safe HTTP, opt-outs, errors and backoff."""
