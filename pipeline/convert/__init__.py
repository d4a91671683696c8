"""Import of transformers checkpoints to run folders, and export back."""
