"""Evaluation: a trained run answers questions, and the answers are scored."""
