"""IBM's own preparation and post-processing of quantum programs (extra `[ibm]`), called by name.

Twirling, dynamical decoupling and error mitigation are IBM's code on both ends; none of it is reimplemented here.
What IBM's client prepares is sent as it is, and what it needs afterwards travels in the job's `passthrough_data`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import orjson

from prefect_qruntime.client.encodings.arrays import NpyArray
from prefect_qruntime.client.inputs.quantum_program import IBM_EXTRA, first_line, ibm_module, write_program
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError

if TYPE_CHECKING:
    from prefect_qruntime.client.inputs.spec import JobSpec

__all__ = ["estimator_pub", "ibm_params"]

_CLIENT = "qiskit_ibm_runtime"
# Options of the server's programs that IBM's client-side ones do not have, or have elsewhere.
_NOT_THEIRS = ("seed_estimator", "precision")


def ibm_params(spec: JobSpec, *, backend: Any = None) -> dict[str, Any]:
    """The `params` of program `executor` for PUBs whose options need IBM's preparation.

    Args:
        spec: A checked submission of program `sampler` or `estimator`.
        backend: IBM's backend object, which dynamical decoupling takes its timing from.

    Raises:
        InvalidInput: IBM's client is not installed, or refuses something.
    """
    from prefect_qruntime.client.programs.executor import program_circuits

    name = "executor_sampler" if spec.program_id == "sampler" else "executor_estimator"
    prepare = ibm_module(f"{name}.prepare", "error suppression and mitigation on the executor").prepare
    models = ibm_module(f"options_models.{spec.program_id}", "error suppression and mitigation on the executor")
    kind = models.SamplerOptions if spec.program_id == "sampler" else models.EstimatorOptions
    given = {option: value for option, value in spec.options.items() if option not in _NOT_THEIRS}
    try:
        options = kind(**given)
    except ValueError as error:
        raise InvalidInput(f"IBM's client refuses them: {first_line(error)}", field="options") from None
    pubs: list[tuple[Any, ...]] = []
    for pub, circuit in zip(spec.pubs, program_circuits(spec), strict=True):
        values = () if pub.parameters is None else pub.parameters
        if spec.program_id == "sampler":
            pubs.append((circuit, values or None, pub.shots))
        else:
            pubs.append((circuit, pub.observables, values or None, pub.precision))
    more: dict[str, Any] = {"backend": backend}
    if spec.program_id == "sampler":
        more["shots"] = spec.shots
    else:
        more["precision"] = spec.options.get("precision")
        if spec.shots is not None and options.default_shots is None:
            options.default_shots = spec.shots
    try:
        program, executor_options = prepare(pubs, options, **more)
    except Exception as error:  # IBM's client and samplomatic have errors of their own for each refusal
        raise InvalidInput(
            f"IBM's client cannot prepare them: {first_line(error)}. Its preparation takes only circuits in the "
            "gates of the backend",
            field="pubs",
        ) from None
    return write_program(program, executor_options)


def estimator_pub(raw: Mapping[str, Any], place: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values and metadata of one PUB of a job made by IBM's client-side Estimator.

    Raises:
        QuantumRuntimeError: IBM's client is not installed.
        ValueError: IBM's client cannot read the result.
    """
    try:
        decoder = import_module(f"{_CLIENT}.decoders.executor.decoder")
        finish = import_module(f"{_CLIENT}.decoders.executor_estimator.post_processor_v0_1")
    except ImportError:
        raise QuantumRuntimeError(
            "the job was made by IBM's client-side Estimator, and only IBM's own code turns its bits into "
            f"expectation values: {IBM_EXTRA}. `.raw` has the data"
        ) from None
    # From the text: from objects the models would take the tensors that were passed through for plain dicts.
    convert, model = decoder.AVAILABLE_DECODERS[raw["schema_version"]]
    found = finish.estimator_v2_post_processor_v0_1(convert(model.model_validate_json(orjson.dumps(raw))))[place]
    values = {name: _array(value) for name, value in found.data.items()}
    metadata = {name: _plain(value) for name, value in found.metadata.items()}
    record = raw["passthrough_data"]["post_processor"]
    return values, {**metadata, "shots": record.get("shots"), "target_precision": record.get("precision")}


def _array(value: Any) -> Any:
    """An array of numbers without numpy; any other as lists."""
    if value.dtype.str[1:] in ("f8", "i8", "b1", "c16"):
        return NpyArray(value.dtype.str, tuple(value.shape), value.tobytes())
    return value.tolist()


def _plain(value: Any) -> Any:
    return value.tolist() if callable(getattr(value, "tolist", None)) else value
