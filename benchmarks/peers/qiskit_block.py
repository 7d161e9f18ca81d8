"""prefect-qiskit, unmodified: its `PrimitiveJob` block, without a flow around it."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

from benchmarks.lab import BACKEND, Lab
from benchmarks.peers.shared import OnRunner


def bell() -> Any:
    """A Bell state that is measured."""
    from qiskit import QuantumCircuit

    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    return circuit


@cache
def _credentials_class(iam_url: str, base_url: str) -> Any:
    from prefect_qiskit.vendors.ibm_quantum import IBMQuantumCredentials
    from prefect_qiskit.vendors.ibm_quantum.client import IBMQuantumPlatformClient

    class Credentials(IBMQuantumCredentials):  # type: ignore[misc, unused-ignore]
        _block_type_slug = "ibm-quantum-credentials-of-a-sandbox"

        def get_client(self) -> Any:
            return IBMQuantumPlatformClient(self.api_key, self.crn, iam_url, base_url)

    return Credentials


def block(lab: Lab) -> Any:
    """Its credentials block, whose client gets the sandbox's addresses.

    The block's own `auth_url` field adds a slash too many (`//identity/token`, which the sandbox does not know),
    so its client is made here, of its own class and by its documented arguments.
    """
    # aiohttp wants the slash at the end.
    return _credentials_class(lab.url, f"{lab.base_url}/")(api_key=lab.api_key, crn=lab.crn)


class QiskitBlock(OnRunner):
    """`PrimitiveJob` and `PrimitiveJobRun`."""

    no_session = "it does not support sessions"

    def load(self) -> None:
        """Import the blocks and make the PUB."""
        from prefect_qiskit.primitives import PrimitiveJob
        from qiskit.primitives.containers.sampler_pub import SamplerPub

        self._job = PrimitiveJob
        self.pub = SamplerPub.coerce((bell(), None, 10))
        self.runner = asyncio.Runner()

    def open(self) -> None:
        """Make the credentials block."""
        self.credentials = block(self.lab)

    async def _submit(self) -> Any:
        job = self._job(
            resource_name=BACKEND, credentials=self.credentials, primitive_blocs=[self.pub], program_type="sampler"
        )
        return await job.trigger()

    async def _wait(self, job: Any) -> None:
        await job.wait_for_completion()

    async def _fetch(self, job: Any) -> int:
        return int((await job.fetch_result())[0].data.meas.num_shots) // 10

    def _id(self, job: Any) -> str:
        return str(job.job_id)

    def close(self) -> None:
        """Close the loop."""
        self.runner.close()


def make(name: str, lab: Lab) -> QiskitBlock:
    """Make the peer."""
    return QiskitBlock(lab)
