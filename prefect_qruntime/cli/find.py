"""Find the credentials block that a command works with if its name is not given."""

from __future__ import annotations

from prefect_qruntime.client.connection import check_id
from prefect_qruntime.credentials import QuantumRuntimeCredentials, aload_credentials, load_each, saved_blocks
from prefect_qruntime.errors import InvalidInput, NotFound, QuantumRuntimeError

__all__ = ["credentials_for", "only_credentials"]


def _none_saved(field: str | None = None) -> InvalidInput:
    return InvalidInput(
        "no Quantum Runtime Credentials block is saved.", field=field, solution="Create one in the UI under Blocks."
    )


async def only_credentials(block: str | None) -> QuantumRuntimeCredentials:
    """Return the named credentials block, or the only one that is saved. Runs on the network loop.

    Raises:
        InvalidInput: No block has the name, or not exactly one is saved.
    """
    names = [block] if block is not None else await saved_blocks()
    if not names:
        raise _none_saved("block")
    if len(names) > 1:
        raise InvalidInput(
            f"the saved blocks are {', '.join(names)}.", field="block", solution="Name one of them with --block."
        )
    return await aload_credentials(names[0])


async def credentials_for(job_id: str, block: str | None) -> QuantumRuntimeCredentials:
    """Return the credentials block of the instance that has a job. Runs on the network loop.

    Args:
        job_id: The job.
        block: Name of the block; None to search the instance of each saved block.

    Raises:
        InvalidInput: No block has the name, or none is saved.
        NotFound: No instance knows the job.
    """
    if block is not None:
        return await aload_credentials(block)
    check_id(job_id, field="job")
    loaded, problems = await load_each(None)
    if len(loaded) == 1 and not problems:
        return next(iter(loaded.values()))
    if not loaded and not problems:
        raise _none_saved()
    for name, credentials in loaded.items():
        try:
            await credentials.get_client().job(job_id)
        except QuantumRuntimeError as error:  # another instance may have the job nevertheless
            if not isinstance(error, NotFound):
                problems[name] = f"{name}: {error}"
            continue
        return credentials
    kind = QuantumRuntimeError if problems else NotFound
    raise kind(
        f"No instance of the saved blocks ({', '.join(sorted({*loaded, *problems}))}) is known to have job {job_id}.",
        reason=" ".join(problems.values()) or None,
        job_id=job_id,
    )
