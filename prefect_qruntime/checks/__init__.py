"""What `doctor` and `verify` look at: fields, addresses, the instance, Prefect. Each check stands by itself."""
