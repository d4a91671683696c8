"""The ETL package: turns published corpora into Arrow shards; `etl.digits` is the toy corpus."""
