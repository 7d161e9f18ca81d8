"""A team's process, whose flow submits jobs in turn: `python -m tests.system.team BLOCK TAG NUMBER FIRST`."""

from __future__ import annotations

import sys

from prefect import flow, tags

from prefect_qruntime import load_credentials, submit_job
from tests.system.spread import circuit


@flow
def submit_all(block: str, number: int, first: int) -> None:
    """Submit so many different jobs."""
    credentials = load_credentials(block)
    for index in range(number):
        submit_job(credentials, [circuit(first + index)], backend="sandbox_ideal", tags=[f"no:{first + index}"])


if __name__ == "__main__":
    with tags(sys.argv[2]):
        submit_all(sys.argv[1], int(sys.argv[3]), int(sys.argv[4]))
