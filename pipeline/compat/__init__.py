"""Private names of libraries, each in one file for its library."""
