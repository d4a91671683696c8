"""Filters: functions on batches of records that keep each row or drop it with a reason."""
