"""From Arrow shards to micro-batches: sampling, tokenizing, packing, collating, loading."""
