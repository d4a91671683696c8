"""The HTML writer and the charts of every page; statistics and the report of an ETL job."""
