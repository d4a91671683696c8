"""Output projectors: from what the backbone thinks at its signals to a generator's conditions."""
