"""Deduplication over a whole job, exact and near, and decontamination against evaluation sets."""
