"""This package as a flow uses it: submit, wait and fetch as task runs."""

from __future__ import annotations

import asyncio

from benchmarks.lab import BACKEND, BELL, Lab
from benchmarks.peers.shared import InFlow


class OursInFlow(InFlow):
    """`arun_job` in an async flow."""

    def load(self) -> None:
        """Import Prefect and the package, and make the flow."""
        from prefect import flow

        from prefect_qruntime import QuantumRuntimeCredentials, arun_job

        @flow(name="benchmark")
        async def many(count: int, together: bool) -> int:
            credentials = QuantumRuntimeCredentials(
                api_key=self.lab.api_key, crn=self.lab.crn, base_url=self.lab.base_url, iam_url=self.lab.url
            )
            jobs = (arun_job(credentials, [BELL], backend=BACKEND, shots=10) for _ in range(count))
            results = await asyncio.gather(*jobs) if together else [await job for job in jobs]
            return sum(sum(result.counts().values()) // 10 for result in results)

        self.flow = many


def make(name: str, lab: Lab) -> OursInFlow:
    """Make the peer."""
    return OursInFlow(lab)
