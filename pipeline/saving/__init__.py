"""What `pipeline.checkpoint` is made of: files, host copies, background writing, re-dealing."""
