"""The tasks, one file per verb: each as a pair, `x` for sync flows and `ax` for async flows.

Submit, wait and fetch are separate task runs. `submit_job` has no retries: run again, it attaches to the
job it submitted. A retry of `wait_for_completion` or `fetch_results` never submits. Each file is loaded when one of
its tasks is first used.
"""
