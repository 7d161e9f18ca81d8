"""Wait for jobs: when to poll, what to ask, and what a websocket adds."""
