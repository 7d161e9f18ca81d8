"""What stands between a caller and a create: budgets, rate limits, locks, and the submission's key."""
