"""What users see of their jobs in Prefect: log lines, events, artifacts."""
