"""ISA check and transpilation, only where asked for."""

from __future__ import annotations

import pytest
from prefect import flow

from prefect_qruntime import InvalidInput, QuantumRuntimeCredentials, run_job, submit_job
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import posts

pytestmark = pytest.mark.server
ABSTRACT = 'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; bit[2] c; h q[0]; cx q[0], q[1]; c = measure q;'
NOISY = "sandbox_noisy"


def test_a_circuit_that_is_not_isa_is_refused_before_anything_is_bought(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    wide = 'OPENQASM 3.0; include "stdgates.inc"; qubit[40] q; bit[1] c; x q[39]; c[0] = measure q[39];'

    @flow
    def one() -> None:
        submit_job(credentials, [wide], backend=NOISY, check_isa=True)

    with pytest.raises(InvalidInput, match="pubs"):
        one()
    assert posts(sandbox) == 0


def test_transpiled_where_asked_for_and_found_again_by_what_was_given(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    tries: list[int] = []

    @flow(retries=1)
    def one() -> dict[str, int]:
        # The second attempt meets another backend, for which the circuit would be transpiled differently.
        backend = NOISY if not tries else "sandbox_ideal"
        counts = run_job(credentials, [ABSTRACT], backend=backend, shots=100, transpile=True, check_isa=True).counts()
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("something downstream broke")
        return counts

    counts = one()
    assert sum(counts.values()) == 100
    assert counts.get("00", 0) + counts.get("11", 0) > 80
    assert posts(sandbox) == 1
