"""Suspend flow runs while a job is queued, so that their worker is free, and resume them in another process."""
