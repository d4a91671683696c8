"""Reports of an ETL job: statistics, charts and `report.html`."""
