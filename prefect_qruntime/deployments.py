"""The jobs of a deployment: those whose `qr-flow:` tag names one of its flow runs.

Asked for again and again, so what cannot change any more is kept: the deployment of a flow run, and jobs whose
usage is final.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.errors import SAME_REQUEST, QuantumRuntimeError
from prefect_qruntime.keys import FLOW_TAG
from prefect_qruntime.models import Job
from prefect_qruntime.orchestration import api

__all__ = ["DeploymentJobs"]

_OVERLAP = timedelta(minutes=10)  # lists may lag
_PAGE = 200


def _flow_run_of(job: Job) -> UUID | None:
    for tag in job.tags:
        if tag.startswith(FLOW_TAG):
            try:
                return UUID(tag.removeprefix(FLOW_TAG))
            except ValueError:
                return None
    return None


class DeploymentJobs:
    """Jobs of an instance since a moment, and whose they are. Lives on the home loop."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._since: datetime | None = None
        self._read: datetime | None = None
        self._owners: dict[UUID, UUID | None] = {}

    async def read(self, client: QuantumRuntimeClient, deployment_id: str, since: datetime) -> list[Job]:
        """All jobs that runs of the deployment bought since a moment.

        A flow run that Prefect does not know (another installation's, or deleted) belongs to no deployment.

        Raises:
            QuantumRuntimeError: The service or Prefect could not be asked; then nothing may be bought.
        """
        await self._read_jobs(client, since)
        found = [job for job in self._jobs.values() if job.created_at is None or job.created_at >= since]
        try:
            await self._read_owners({run for job in found if (run := _flow_run_of(job)) is not None})
        except Exception as error:
            raise QuantumRuntimeError(
                f"the budget of the deployment cannot be checked: Prefect's API gave no answer ({error!r})",
                solution="Nothing was sent. Run the flow again when Prefect's API can be reached.",
                advice=SAME_REQUEST,
            ) from error
        wanted = UUID(deployment_id)
        return [job for job in found if (run := _flow_run_of(job)) is not None and self._owners.get(run) == wanted]

    async def _read_jobs(self, client: QuantumRuntimeClient, since: datetime) -> None:
        now = datetime.now(UTC)
        begin = since
        if self._read is not None and self._since is not None and self._since <= since:
            moving = [job.created_at for job in self._jobs.values() if not job.usage_final and job.created_at]
            begin = max(since, min([self._read - _OVERLAP, *moving]))
        else:
            self._since = since
        for job in await client.jobs(created_after=begin):
            if _flow_run_of(job) is not None:
                self._jobs[job.id] = job
        self._read = now

    async def _read_owners(self, runs: set[UUID]) -> None:
        new = sorted(runs - self._owners.keys())
        prefect = await api()
        for start in range(0, len(new), _PAGE):
            batch = new[start : start + _PAGE]
            known = await prefect.read_flow_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=batch)), limit=_PAGE
            )
            self._owners.update(dict.fromkeys(batch))
            self._owners.update({run.id: run.deployment_id for run in known})
