"""A spec's digest depends on what is computed and on nothing else."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from prefect_qruntime.client.inputs.spec import JobSpec, Pub

SPEC = JobSpec(
    "sampler", "b", pubs=(Pub("OPENQASM 3.0;", parameters=[1.0], shots=10),), options={"a": {"b": 1, "c": 2}}
)


@pytest.mark.parametrize(
    "other",
    [
        replace(SPEC, program_id="estimator"),
        replace(SPEC, pubs=(*SPEC.pubs, *SPEC.pubs)),
        replace(SPEC, pubs=(replace(SPEC.pubs[0], shots=11),)),
        replace(SPEC, pubs=(replace(SPEC.pubs[0], parameters=[1.5]),)),
        replace(SPEC, pubs=(replace(SPEC.pubs[0], identity="other"),)),
        replace(SPEC, shots=10),
        replace(SPEC, options={"a": {"b": 1, "c": 3}}),
        replace(SPEC, max_execution_time=10),
        replace(SPEC, private=True),
        replace(SPEC, params={"x": 1}),
    ],
)
def test_other_work_other_digest(other: JobSpec) -> None:
    assert other.digest() != SPEC.digest()


@pytest.mark.parametrize(
    "same",
    [
        replace(SPEC, backend="another"),
        replace(SPEC, tags=("mine",)),
        replace(SPEC, options={"a": {"c": 2, "b": 1}}),
        replace(SPEC, pubs=(replace(SPEC.pubs[0], width=2),)),
        replace(SPEC, pubs=(replace(SPEC.pubs[0], parameters=(1.0,)),)),
    ],
)
def test_equal_work_equal_digest(same: JobSpec) -> None:
    assert same.digest() == SPEC.digest()


def test_qpy_text_does_not_count_where_its_identity_is_known() -> None:
    one, two = (Pub({"__type__": "QuantumCircuit", "__value__": v}, identity=["ops"]) for v in ("a", "b"))
    assert replace(SPEC, pubs=(one,)).digest() == replace(SPEC, pubs=(two,)).digest()


def test_the_digest_is_the_same_in_another_process() -> None:
    code = (
        "from prefect_qruntime.client.inputs.spec import JobSpec, Pub;"
        "print(JobSpec('sampler', 'b', pubs=(Pub('OPENQASM 3.0;', parameters=[1.0], shots=10),),"
        " options={'a': {'b': 1, 'c': 2}}).digest())"
    )
    env = {"PYTHONHASHSEED": "7"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env, timeout=300)
    assert run.stdout.strip() == SPEC.digest()
