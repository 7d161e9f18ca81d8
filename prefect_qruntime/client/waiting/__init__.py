"""Wait for jobs by polling, with a websocket where there is one."""
