"""Runs an ETL job: plan, download, score, filter globally, write shards and manifest."""
