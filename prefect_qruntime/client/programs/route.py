"""Choose the route of PUBs: the service's own primitive, or a quantum program of the executor. Pure.

| asked for | PUBs of the sampler and the estimator | raw `params` |
|---|---|---|
| `service` | the server's primitive | as they are |
| `executor` | a quantum program | refused, unless the program is the executor |
| `auto` | the server's primitive; the executor if the service says that the program is gone | as they are |

Program `executor` with PUBs means the sampler on that route. A dialect without an executor refuses the program's
payload.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from prefect_qruntime.client.inputs.quantum_program import IBM_EXTRA, has_ibm
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError

if TYPE_CHECKING:
    from prefect_qruntime.client.inputs.spec import JobSpec

__all__ = [
    "ROUTES",
    "PrimitiveRoute",
    "RequestedRoute",
    "Route",
    "choose_route",
    "on_executor",
    "program_is_gone",
    "program_params",
    "route_notices",
]

PrimitiveRoute = Literal["service", "executor"]
RequestedRoute = Literal["service", "executor", "auto"]
ROUTES: tuple[RequestedRoute, ...] = ("service", "executor", "auto")

_PRIMITIVES = ("sampler", "estimator")
_REFUSALS = (400, 403, 404, 410, 422)
_GONE = re.compile(
    r"\b(?:not found|unknown|no longer|removed|retired|discontinued|deprecated|sunset|unsupported|not supported|"
    r"not available|unavailable|not offered|does not exist|invalid)\b",
    re.IGNORECASE,
)
_OTHER_THINGS = re.compile(r"\b(?:backend|session|instance|job [a-z0-9-]+|schema|pub|option)s?\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Route:
    """The route of a submission.

    Attributes:
        route: The route it takes first.
        program_id: What the PUBs are for: `sampler` or `estimator`; of a raw payload its program.
        may_turn: Whether it takes the executor if the service says that the program is gone.
    """

    route: PrimitiveRoute
    program_id: str
    may_turn: bool = False


def choose_route(requested: str, program_id: str, *, raw: bool = False) -> Route:
    """Choose the route of a submission.

    Args:
        requested: `service`, `executor` or `auto`.
        program_id: The program that was asked for.
        raw: Whether there is a raw payload in place of PUBs.

    Raises:
        InvalidInput: There is no such route.
    """
    if requested not in ROUTES:
        raise InvalidInput(f"must be 'service', 'executor' or 'auto', not {requested!r}", field="route")
    if raw:
        if requested == "executor" and program_id != "executor":
            raise InvalidInput(
                f"'executor' is for PUBs; the raw params= of program {program_id!r} go there anyway. Leave route out",
                field="route",
            )
        return Route("service", program_id)
    if program_id == "executor":
        requested, program_id = "executor", "sampler"
    if program_id not in _PRIMITIVES:
        if requested == "executor":
            raise InvalidInput(
                f"'executor' runs the sampler and the estimator, not program {program_id!r}. Leave route out",
                field="route",
            )
        return Route("service", program_id)
    if requested == "executor":
        return Route("executor", program_id)
    return Route("service", program_id, may_turn=requested == "auto")


def program_is_gone(error: BaseException, program_id: str) -> bool:
    """Whether the service's refusal of a submission says that the program itself is gone or not offered.

    Only such a refusal lets `auto` turn to the executor: nothing was accepted then. Everything else does not, a
    lost answer least of all. How the service will word it is not known, so the words must name the program and
    nothing else that could be missing.
    """
    if not isinstance(error, QuantumRuntimeError) or error.status not in _REFUSALS:
        return False
    text = f"{error.message} {error.reason or ''}"
    named = re.search(rf"\b(?:programs?|primitives?|{re.escape(program_id)})\b", text, re.IGNORECASE)
    if named is None or _OTHER_THINGS.search(text):
        return False
    return error.status == 410 or _GONE.search(text) is not None


def program_params(spec: JobSpec, *, backend: Any = None) -> dict[str, Any]:
    """The `params` of program `executor` for a checked submission of the sampler or the estimator.

    IBM's preparation makes them if an option needs it and it is installed, else our own.

    Args:
        spec: A checked submission with PUBs.
        backend: IBM's backend object, which dynamical decoupling needs.

    Raises:
        InvalidInput: Something that the executor cannot do; it is named.
    """
    from prefect_qruntime.client.programs.executor import executor_params, options_that_need_ibm  # few jobs take it

    if any(options_that_need_ibm(spec.options)) and has_ibm():
        from prefect_qruntime.client.programs.ibm import ibm_params

        return ibm_params(spec, backend=backend)
    return executor_params(spec, form=spec.circuit_form)


def on_executor(spec: JobSpec, *, backend: Any = None) -> JobSpec:
    """The same submission on the executor: it has the same digest, and so the same key.

    Raises:
        InvalidInput: Something that the executor cannot do; it is named.
    """
    if spec.params is not None:
        raise InvalidInput("'executor' is for PUBs; raw params= have a program of their own", field="route")
    return replace(spec, prepared=program_params(spec, backend=backend))


def route_notices(spec: JobSpec) -> tuple[str, ...]:
    """Differences on a submission's route although no option was refused, to be logged when it is submitted."""
    if spec.route != "executor" or spec.program_id != "estimator":
        return ()
    from prefect_qruntime.client.programs.executor import options_that_need_ibm

    if "resilience_level" in spec.options or any(options_that_need_ibm(spec.options)):
        return ()
    return (
        'The route "executor" runs the estimator without error mitigation, while the service\'s own estimator would '
        "mitigate readout errors (resilience level 1). Set options.resilience_level to 0 to confirm that, or to 1 "
        f"for IBM's mitigation ({IBM_EXTRA}).",
    )
