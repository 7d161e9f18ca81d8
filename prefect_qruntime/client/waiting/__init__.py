"""Wait for jobs by polling, with a websocket if there is one."""
