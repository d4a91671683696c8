"""Private names of other libraries that models need, a file per library."""
