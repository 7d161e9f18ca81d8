"""Automations of Prefect that react to the events of jobs."""
