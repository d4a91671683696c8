"""Media: probing, decoding, resizing, and finding them in local files and archives."""
