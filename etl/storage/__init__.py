"""Samples on disk: their schema, Arrow shards, manifests, atomic files, file fingerprints."""
