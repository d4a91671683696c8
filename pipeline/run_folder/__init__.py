"""The run folder: metrics, loggers, skipped samples, forecast against actual, and report."""
