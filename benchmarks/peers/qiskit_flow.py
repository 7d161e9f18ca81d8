"""prefect-qiskit, unmodified, as its documentation shows it: `QuantumRuntime` in a flow."""

from __future__ import annotations

import asyncio

from benchmarks.lab import BACKEND, Lab
from benchmarks.peers.qiskit_block import bell, block
from benchmarks.peers.shared import InFlow


class QiskitInFlow(InFlow):
    """`QuantumRuntime.async_sampler` in an async flow."""

    def load(self) -> None:
        """Import Prefect and the package, and make the flow."""
        from prefect import flow
        from prefect_qiskit.runtime import QuantumRuntime

        circuit = bell()

        @flow(name="benchmark")
        async def many(count: int, together: bool) -> int:
            # Its own 300 s between tries would only be waited out; everything else is as it comes.
            runtime = QuantumRuntime(resource_name=BACKEND, credentials=block(self.lab), retry_delay=1)
            jobs = (runtime.async_sampler([(circuit, None, 10)]) for _ in range(count))
            results = await asyncio.gather(*jobs) if together else [await job for job in jobs]
            return sum(int(result[0].data.meas.num_shots) // 10 for result in results)

        self.flow = many


def make(name: str, lab: Lab) -> QiskitInFlow:
    """Make the peer."""
    return QiskitInFlow(lab)
