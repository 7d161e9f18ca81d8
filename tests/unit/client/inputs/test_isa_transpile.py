"""PUBs transpiled from a configuration: they fit, and mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qiskit import QuantumCircuit, qasm3
from qiskit.circuit import Parameter
from qiskit.primitives import StatevectorEstimator, StatevectorSampler
from qiskit.primitives.containers.bindings_array import BindingsArray
from qiskit.quantum_info import PauliList, SparsePauliOp

from prefect_qruntime.client.inputs import check_isa, transpile_pubs
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.errors import InvalidInput

LINE: dict[str, Any] = {
    "n_qubits": 5,
    "basis_gates": ["ecr", "id", "rz", "sx", "x"],
    "supported_instructions": ["ecr", "id", "rz", "sx", "x", "measure", "reset", "delay", "if_else"],
    "coupling_map": [[0, 1], [1, 2], [3, 2], [3, 4]],
}


def _ghz(measured: bool = True) -> QuantumCircuit:
    circuit = QuantumCircuit(3)
    circuit.ry(Parameter("t"), 0)
    circuit.cx(0, 1)
    circuit.cx(0, 2)
    if measured:
        circuit.measure_all()
    return circuit


def test_sampler_pubs(tmp_path: Path) -> None:
    bound = _ghz().assign_parameters([np.pi / 2])
    file = tmp_path / "ghz.qasm"
    file.write_text(qasm3.dumps(bound))
    given = [(_ghz(), [np.pi / 2], 50), bound, file, qasm3.dumps(bound)]
    pubs = transpile_pubs(given, LINE)
    check_isa(make_spec(pubs, backend="b"), LINE)
    assert [len(pub) for pub in pubs] == [3, 1, 1, 1]
    assert pubs[0][1:] == ([np.pi / 2], 50)
    for result in StatevectorSampler(seed=1).run(pubs, shots=200).result():
        assert set(result.data.meas.get_counts()) == {"000", "111"}


@pytest.mark.parametrize("angle", [0.5, -0.5, 2.0, Parameter("t")])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_rzz_stays_only_with_angles_that_a_qpu_runs(angle: Any, level: int) -> None:
    heron = {**LINE, "basis_gates": ["cz", "id", "rx", "rz", "rzz", "sx", "x"]}
    circuit = QuantumCircuit(2)
    circuit.h([0, 1])
    circuit.rzz(angle, 0, 1)
    values = [-0.7] if isinstance(angle, Parameter) else None
    [before] = StatevectorEstimator().run([(circuit, ["YZ", "XX"], values)]).result()
    given: dict[str, Any] = {"program_id": "estimator", "optimization_level": level}
    for configuration, kept in ((heron, angle == 0.5), ({**heron, "simulator": True}, True)):
        pubs = transpile_pubs((circuit, ["YZ", "XX"], values), configuration, **given)
        assert ("rzz" in pubs[0][0].count_ops()) == kept
        check_isa(make_spec(pubs, backend="b", program_id="estimator"), configuration)
        [after] = StatevectorEstimator().run(pubs).result()
        np.testing.assert_allclose(after.data.evs, before.data.evs, atol=1e-9)


def test_estimator_observables_follow_the_layout() -> None:
    observables = ["ZZI", {"XXX": 0.5, "IIZ": 1.0}]
    circuit = _ghz(measured=False)
    [before] = StatevectorEstimator().run([(circuit, observables, [0.7])]).result()
    pubs = transpile_pubs((circuit, observables, [0.7]), LINE, program_id="estimator", optimization_level=3)
    [after] = StatevectorEstimator().run([(pubs[0][0], pubs[0][1], [0.7])]).result()
    np.testing.assert_allclose(after.data.evs, before.data.evs, atol=1e-9)
    spec = make_spec(pubs, backend="b", program_id="estimator")
    check_isa(spec, LINE)
    assert len(next(iter(spec.pubs[0].observables[0]))) == 5
    # Whatever holds the observables: qiskit itself takes no tuple.
    other = transpile_pubs((circuit, tuple(observables), [0.7]), LINE, program_id="estimator", optimization_level=3)
    assert other[0][1] == pubs[0][1]


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("composite", [False, True])
def test_estimator_values_are_those_of_the_state_before_the_last_measurements(
    seed: int, level: Any, composite: bool
) -> None:
    """Qiskit drops gates that the circuit's own measurements do not show; those of the observables do."""
    draw = np.random.default_rng(seed)
    circuit = QuantumCircuit(3, 3)
    circuit.ry(Parameter("a"), 0)
    circuit.ry(1.1, [1, 2])
    angles = {name: [Parameter(name)] for name in ("rz", "p", "rzz")}
    for name in draw.permutation(["rz", "p", "rzz", "cz", "t", "swap"]):
        qubits = draw.permutation(3)[: 2 if name in ("rzz", "cz", "swap") else 1]
        getattr(circuit, name)(*angles.get(name, ()), *map(int, qubits))
    plain = circuit.copy()
    measured = [int(qubit) for qubit in draw.permutation(3)[: 1 + seed % 3]]
    if composite:
        # Of three qubits and more qiskit unrolls it before it looks at what its measurements show.
        inner = QuantumCircuit(3, 3)
        inner.measure(measured, measured)
        circuit.append(inner.to_instruction(), range(3), range(3))
    else:
        circuit.measure(measured, measured)
    observables = ["IIX", "IYI", "XII", "ZIX", "YXZ", "ZZZ"]
    values = draw.uniform(-3, 3, circuit.num_parameters).tolist()
    [before] = StatevectorEstimator().run([(plain, observables, values)]).result()
    [pub] = transpile_pubs((circuit, observables, values), LINE, program_id="estimator", optimization_level=level)
    spec = make_spec([pub], backend="b", program_id="estimator")
    left = pub[0].remove_final_measurements(inplace=False)
    [after] = StatevectorEstimator().run([(left, pub[1], spec.pubs[0].parameters)]).result()
    np.testing.assert_allclose(after.data.evs, before.data.evs, atol=1e-9)


def test_equal_work_has_an_equal_digest() -> None:
    def digest(level: int) -> str:
        pubs = transpile_pubs((_ghz(), [0.5], 10), LINE, optimization_level=level)
        return make_spec(pubs, backend="b").digest()

    assert digest(1) == digest(1)


TWO = (
    'OPENQASM 3.0; include "stdgates.inc"; input float[64] {}; input float[64] {}; qubit[1] q; bit[1] c; '
    "rx({}) q[0]; rz({}) q[0]; c = measure q;"
)


@pytest.mark.parametrize("program", ["sampler", "estimator"])
@pytest.mark.parametrize("names", ["ab", "ba"])
@pytest.mark.parametrize("kind", ["list", "array", "names", "bindings", "pub"])
def test_values_are_those_of_their_names_or_refused(kind: str, names: str, program: str, tmp_path: Path) -> None:
    """As `make_spec` has it for the same PUB, whose list of values would otherwise get qiskit's order."""
    text = TWO.format(*names, *names)
    values: Any = {
        "list": [np.pi, 0.5],
        "array": np.array([np.pi, 0.5]),
        "names": {names[0]: np.pi, names[1]: 0.5},
        "bindings": BindingsArray({names[0]: np.pi, names[1]: 0.5}),
        "pub": {tuple(names): [np.pi, 0.5]},
    }[kind]
    file = tmp_path / "two.qasm"
    file.write_text(text)
    for circuit in (text, file):
        pub = (circuit, values) if program == "sampler" else (circuit, "Z", values)
        try:
            wanted = make_spec([pub], backend="b", program_id=program)
        except InvalidInput as error:
            refused = error.field
        else:
            refused = None
            assert wanted
        if refused is None:
            found = make_spec(transpile_pubs([pub], LINE, program_id=program), backend="b", program_id=program)
            assert found.pubs[0].parameters == ([np.pi, 0.5] if names == "ab" else [0.5, np.pi])
        else:
            assert (kind, names) in (("list", "ba"), ("array", "ba"))
            with pytest.raises(InvalidInput, match="by name") as caught:
                transpile_pubs([pub], LINE, program_id=program)
            assert caught.value.field == refused == "pubs[0].parameters"


@pytest.mark.parametrize("program", ["sampler", "estimator"])
@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("points", [(), (3,), (2, 3)])
@pytest.mark.parametrize("kind", ["list", "names", "bindings"])
@pytest.mark.parametrize("gone", ["b", "ac", "abc"])
def test_values_of_a_parameter_that_is_optimised_away_are_not_taken_for_those_of_another(
    gone: str, kind: str, points: tuple[int, ...], level: int, program: str
) -> None:
    circuit, names = QuantumCircuit(3, 3), "abc"
    for qubit, name in enumerate(names):
        # A rotation about z of the state 0 has no effect.
        (circuit.rz if name in gone else circuit.rx)(Parameter(name), qubit)
    if program == "sampler":
        circuit.measure(range(3), range(3))
    rows = np.random.default_rng(1).uniform(-3, 3, (*points, 3))
    values: Any = {
        "list": rows.tolist(),
        "names": {name: rows[..., [place]].tolist() for place, name in enumerate(names)},
        "bindings": BindingsArray({tuple(names): rows}, shape=points),
    }[kind]
    pub = (circuit, values) if program == "sampler" else (circuit, "ZZZ", values)
    found = transpile_pubs([pub], LINE, program_id=program, optimization_level=level)
    left = [parameter.name for parameter in found[0][0].parameters]
    assert set(names) - set(left) <= set(gone)
    spec = make_spec(found, backend="b", program_id=program)
    wanted = rows[..., [names.index(name) for name in left]]
    assert np.array(spec.pubs[0].parameters if wanted.shape != (0,) else []).tolist() == wanted.tolist()
    if program == "sampler" and left:
        assert StatevectorSampler(seed=1).run([(found[0][0], wanted)], shots=1).result()[0].data.c.shape == points


@pytest.mark.parametrize(
    ("pubs", "program", "field"),
    [
        (QuantumCircuit(6, 1), "sampler", "pubs[0].circuit"),
        ("OPENQASM 3.0; nonsense;", "sampler", "pubs[0].circuit"),
        *(
            ([(QuantumCircuit(2), wrong)], "estimator", "pubs[0].observables")
            for wrong in (
                "ZZZ",
                "Z",
                ["ZI", "Z"],
                {"Z": 1.0},
                SparsePauliOp("Z"),
                PauliList(["Z"]),
                np.array(["Z"]),
                None,
            )
        ),
        ([], "sampler", "pubs"),
    ],
)
def test_what_cannot_be_transpiled(pubs: Any, program: str, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        transpile_pubs(pubs, LINE, program_id=program)
    assert caught.value.field == field


def test_a_backend_with_gates_that_qiskit_does_not_know_is_named() -> None:
    with pytest.raises(InvalidInput, match="gates") as caught:
        transpile_pubs(_ghz(), {**LINE, "basis_gates": [*LINE["basis_gates"], "mine"]})
    assert caught.value.field == "backend"
    leaving = [*LINE["supported_instructions"], "for_loop", "break_loop", "continue_loop"]
    assert transpile_pubs((_ghz(), [0.1]), {**LINE, "supported_instructions": leaving})
