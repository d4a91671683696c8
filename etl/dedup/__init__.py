"""Deduplication over a whole job, exact and near, and decontamination of evaluation sets."""
