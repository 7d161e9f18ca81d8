"""The flows that the system tests deploy."""

from __future__ import annotations

import time

from prefect import flow, unmapped

import prefect_qruntime as qr

CIRCUIT = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; x q[0]; c = measure q;'
BACKEND = "sandbox_ideal"


@flow(name="nightly-sync", **qr.hooks.cancel)
def nightly_sync(credentials_block: str) -> dict[str, int]:
    """One job in a session, by sync tasks."""
    credentials = qr.load_credentials(credentials_block)
    with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
        qr.submit_job(credentials, [CIRCUIT], backend=BACKEND, session=session, shots=10)
        return qr.run_job(credentials, [CIRCUIT], backend=BACKEND, session=session, shots=20).counts()


@flow(name="nightly-async", **qr.hooks.cancel)
async def nightly_async(credentials_block: str) -> dict[str, int]:
    """One job in a session, by async tasks."""
    credentials = await qr.aload_credentials(credentials_block)
    async with qr.aruntime_session(credentials, BACKEND, max_ttl=300) as session:
        await qr.asubmit_job(credentials, [CIRCUIT], backend=BACKEND, session=session, shots=10)
        return (await qr.arun_job(credentials, [CIRCUIT], backend=BACKEND, session=session, shots=20)).counts()


@flow(name="nightly-mapped", **qr.hooks.cancel)
def nightly_mapped(credentials_block: str) -> None:
    """Jobs waited for in threads, which no signal reaches."""
    credentials = unmapped(qr.load_credentials(credentials_block))
    jobs = qr.submit_job.map(credentials, [[CIRCUIT]] * 3, backend=BACKEND)
    qr.wait_for_completion.map(credentials, jobs).result()


@flow(name="nightly-busy", **qr.hooks.cancel)
def nightly_busy(credentials_block: str) -> None:
    """Leave a job running and be busy elsewhere: only the hook can cancel it."""
    credentials = qr.load_credentials(credentials_block)
    qr.submit_job(credentials, [CIRCUIT], backend=BACKEND)
    time.sleep(120)


@flow(name="nightly-detached", **qr.hooks.detach)
def nightly_detached(credentials_block: str) -> None:
    """A job that outlives its flow run."""
    credentials = qr.load_credentials(credentials_block)
    qr.run_job(credentials, [CIRCUIT], backend=BACKEND)
