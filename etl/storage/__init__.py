"""Records and Arrow shards on disk."""
