"""Programs of the service: what each one takes and returns, as plain data in and out."""
