"""IBM's official client, unmodified; a thread for each job, as it is synchronous.

It is pointed at the sandbox by documented parameters and its own environment variables only: `url` with
`url_resolver`, `IAM_URL`, and `QISKIT_FUNCTIONS_EXPERIMENTAL`, which makes it take the given instance instead of
searching IBM's catalogue.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.lab import BACKEND, Lab


class Official:
    """`SamplerV2` of qiskit-ibm-runtime."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.session: Any = None

    def load(self) -> None:
        """Import the client and make the circuit."""
        os.environ["IAM_URL"] = self.lab.url
        os.environ["QISKIT_FUNCTIONS_EXPERIMENTAL"] = "1"
        from qiskit import QuantumCircuit
        from qiskit_ibm_runtime import QiskitRuntimeService, SamplerV2, Session

        self._service, self._sampler, self._session = QiskitRuntimeService, SamplerV2, Session
        self.circuit = QuantumCircuit(2)
        self.circuit.h(0)
        self.circuit.cx(0, 1)
        self.circuit.measure_all()

    def open(self) -> None:
        """Make the service and look up the backend."""
        service = self._service(
            channel="ibm_quantum_platform",
            token=self.lab.api_key,
            instance=self.lab.crn,
            url=self.lab.base_url,
            url_resolver=lambda url, *_: url,
        )
        self.backend = service.backend(BACKEND)

    def _submit(self, _: int = 0) -> Any:
        return self._sampler(mode=self.session or self.backend).run([self.circuit], shots=10)

    def _run(self, _: int) -> int:
        return int(self._submit().result()[0].data.meas.num_shots) // 10

    def run(self, count: int, *, together: bool = True) -> int:
        """Submit, wait and fetch, a thread for each job."""
        with ThreadPoolExecutor(count if together else 1) as pool:
            return sum(pool.map(self._run, range(count)))

    def submit(self, count: int, *, session: bool = False) -> list[Any]:
        """Submit from threads, in a session where asked for."""
        if session and self.session is None:
            self.session = self._session(backend=self.backend, max_time="1h")
        with ThreadPoolExecutor(min(count, 64)) as pool:
            return list(pool.map(self._submit, range(count)))

    def wait(self, jobs: list[Any], knows: Callable[[str], object]) -> None:
        """Wait at the client's own pace, a thread for each job."""

        def one(job: Any) -> None:
            job.wait_for_final_state()
            knows(job.job_id())

        with ThreadPoolExecutor(len(jobs)) as pool:
            list(pool.map(one, jobs))

    def close(self) -> None:
        """Close the session."""
        if self.session is not None:
            self.session.close()


def make(name: str, lab: Lab) -> Official:
    """Make the peer."""
    return Official(lab)
