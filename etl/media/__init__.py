"""Media: probing, decoding, resizing, and reading them from local files and archives."""
