"""Where a run's metrics and files are sent."""
