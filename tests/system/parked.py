"""Flows that hand their waits over to the watcher."""

from __future__ import annotations

from prefect import flow

import prefect_qruntime as qr
from tests.system.nightly import BACKEND, CIRCUIT


@flow(name="parked-sync", **qr.hooks.cancel)
def parked_sync(credentials_block: str) -> dict[str, int]:
    """One job, without a worker while it waits."""
    credentials = qr.load_credentials(credentials_block)
    job = qr.submit_job(credentials, [CIRCUIT], backend=BACKEND, shots=20)
    qr.suspend_until_done(credentials, job)
    return qr.fetch_results(credentials, job).counts()


@flow(name="parked-async", **qr.hooks.cancel)
async def parked_async(credentials_block: str) -> dict[str, int]:
    """Two jobs one after the other, the first in a session."""
    credentials = await qr.aload_credentials(credentials_block)
    async with qr.aruntime_session(credentials, BACKEND, max_ttl=300) as session:
        first = await qr.asubmit_job(credentials, [CIRCUIT], backend=BACKEND, session=session, shots=10)
        await qr.asuspend_until_done(credentials, first)
    second = await qr.asubmit_job(credentials, [CIRCUIT], backend=BACKEND, shots=30)
    await qr.asuspend_until_done(credentials, second)
    return (await qr.afetch_results(credentials, second)).counts()


@flow(name="parked-session", **qr.hooks.cancel)
def parked_session(credentials_block: str) -> dict[str, int]:
    """As `parked_sync`, in a session."""
    credentials = qr.load_credentials(credentials_block)
    with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
        job = qr.submit_job(credentials, [CIRCUIT], backend=BACKEND, session=session, shots=20)
        qr.suspend_until_done(credentials, job)
        return qr.fetch_results(credentials, job).counts()


@flow(name="parked-detached", **qr.hooks.detach)
def parked_detached(credentials_block: str) -> None:
    """A job that outlives its flow run."""
    credentials = qr.load_credentials(credentials_block)
    qr.suspend_until_done(credentials, qr.submit_job(credentials, [CIRCUIT], backend=BACKEND))


@flow(name="parked-left")
def parked_left(credentials_block: str) -> str:
    """A job that nobody waits for; the watcher tells of its end."""
    credentials = qr.load_credentials(credentials_block)
    return qr.leave_to_watcher(credentials, qr.submit_job(credentials, [CIRCUIT], backend=BACKEND, shots=40)).id
