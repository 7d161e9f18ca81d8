"""One of several processes that submit at the same time: `python fan_out.py BLOCK NUMBER`."""

from __future__ import annotations

import sys

from prefect import flow, unmapped

from prefect_qruntime import load_credentials, submit_job

CIRCUIT = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; x q[0]; c = measure q;'


@flow
def fan_out(credentials_block: str, number: int) -> int:
    """Submit so many jobs with mapped tasks; returns how many were bought."""
    credentials = load_credentials(credentials_block)
    jobs = submit_job.map(unmapped(credentials), [CIRCUIT] * number, backend="sandbox_ideal").result()
    return len({job.id for job in jobs if not job.attached})


if __name__ == "__main__":
    sys.exit(0 if fan_out(sys.argv[1], int(sys.argv[2])) == int(sys.argv[2]) else 1)
