"""What each command of `prefect-qruntime` does; `cli` names them."""
