"""Output projectors: hidden states at signal tokens to a generator's conditions."""
