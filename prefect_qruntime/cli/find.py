"""Find the instance that has a job, for commands that are given a job's id alone."""

from __future__ import annotations

from prefect_qruntime.credentials import QuantumRuntimeCredentials, aload_credentials, saved_blocks
from prefect_qruntime.errors import InvalidInput, NotFound

__all__ = ["credentials_for"]


async def credentials_for(job_id: str, block: str | None) -> QuantumRuntimeCredentials:
    """The credentials block of the instance that has a job. Runs on the network loop.

    Args:
        job_id: The job.
        block: Name of the block; None to ask the instance of each saved one.

    Raises:
        InvalidInput: No block has the name, or none is saved.
        NotFound: No instance knows the job.
    """
    if block is not None:
        return await aload_credentials(block)
    names = await saved_blocks()
    if not names:
        raise InvalidInput("no Quantum Runtime Credentials block is saved; make one in the UI under Blocks")
    if len(names) == 1:
        return await aload_credentials(names[0])
    for name in names:
        credentials = await aload_credentials(name)
        try:
            await credentials.get_client().job(job_id)
        except NotFound:
            continue
        return credentials
    raise NotFound(f"no instance of the saved blocks ({', '.join(names)}) knows job {job_id}", job_id=job_id)
