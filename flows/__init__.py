"""Flows ready to deploy, to run by hand, and to call from your own flows."""
