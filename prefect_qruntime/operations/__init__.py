"""What an operator runs: the sweep of orphans and the list of jobs."""
