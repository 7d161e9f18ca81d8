"""Checks of settings, network, instance and Prefect server that `doctor` and `verify` report."""
