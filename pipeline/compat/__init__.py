"""Private names and quirks of libraries, one file per library or concern."""
