"""What a run leaves in its folder: metrics, loggers, bad samples, report."""
