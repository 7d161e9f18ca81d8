"""Flow runs that give their worker back while a job is queued, and the process that resumes them."""
