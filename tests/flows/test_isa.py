"""ISA check and transpilation, only where asked for."""

from __future__ import annotations

from typing import Any

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


def test_a_quantum_program_is_checked_and_never_transpiled(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    text = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; %s c[0] = measure $0;'
    item: dict[str, Any] = {
        "item_type": "circuit",
        "circuit_arguments": {"data": "", "shape": [0], "dtype": "f64"},
        "shape": [],
    }

    @flow
    def one(gates: str, **given: Any) -> None:
        program = {"shots": 5, "circuits": {"data": [text % gates]}, "items": [item]}
        params = {"schema_version": "v2.0", "quantum_program": program, "options": {}}
        submit_job(credentials, backend=NOISY, program_id="executor", params=params, **given)

    with pytest.raises(InvalidInput, match="no gate 'h'"):
        one("h $0;", check_isa=True)
    with pytest.raises(InvalidInput, match="go as they are") as caught:
        one("x $0;", transpile=True)
    assert caught.value.field == "transpile"
    assert posts(sandbox) == 0
    one("x $0;", check_isa=True)
    assert posts(sandbox) == 1
