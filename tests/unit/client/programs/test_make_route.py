"""Which way PUBs take, and when `auto` turns."""

from __future__ import annotations

import re
from typing import Any

import pytest

from prefect_qruntime.client.dialects import v1_params, v2_params
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.programs.make import Route, choose_route, on_executor, program_is_gone, route_notices
from prefect_qruntime.errors import InvalidInput, NotFound, QuantumRuntimeError, ServiceUnavailable, SubmissionUncertain
from tests.support.circuits import BELL


@pytest.mark.parametrize(
    ("requested", "program", "given", "want"),
    [
        ("service", "sampler", {}, Route("service", "sampler")),
        ("executor", "sampler", {}, Route("executor", "sampler")),
        ("executor", "estimator", {}, Route("executor", "estimator")),
        ("auto", "estimator", {}, Route("service", "estimator", may_turn=True)),
        # PUBs for the executor mean the sampler on that route, whatever the default of the route is.
        *((route, "executor", {}, Route("executor", "sampler")) for route in ("service", "executor", "auto")),
        # Raw payloads go where they are sent.
        ("service", "executor", {"raw": True}, Route("service", "executor")),
        ("executor", "executor", {"raw": True}, Route("service", "executor")),
        ("auto", "noise-learner", {"raw": True}, Route("service", "noise-learner")),
    ],
)
def test_the_table(requested: str, program: str, given: dict[str, Any], want: Route) -> None:
    assert choose_route(requested, program, **given) == want


@pytest.mark.parametrize(
    ("requested", "program", "given", "word"),
    [
        ("fast", "sampler", {}, "'fast'"),
        ("executor", "noise-learner", {}, "'noise-learner'"),
        ("executor", "noise-learner", {"raw": True}, "raw params="),
    ],
)
def test_ways_that_there_are_not(requested: str, program: str, given: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(word)) as caught:
        choose_route(requested, program, **given)
    assert caught.value.field == "route"


GONE = [
    (NotFound, 404, "Program 'sampler' not found."),
    (QuantumRuntimeError, 410, "The sampler was switched off."),
    (QuantumRuntimeError, 400, "The primitive sampler is no longer supported; use executor."),
    (QuantumRuntimeError, 400, "program_id 'sampler' is unknown, program does not exist"),
    (QuantumRuntimeError, 403, "This program has been retired"),
    (NotFound, 404, "the submission was refused: program not found: sampler (HTTP 404, code not_found, trace 1196c2)"),
    (
        InvalidInput,
        400,
        "the submission was refused: The program 'sampler' is not offered here. See "
        "https://quantum.cloud.ibm.com/docs/errors#1208 (HTTP 400, code 1208, trace 11)",
    ),
]
NOT_GONE = [
    (NotFound, 404, "Backend ibm_x not found."),
    (NotFound, 404, "Program 'sampler' is not offered on backend ibm_x."),
    (NotFound, 404, "Not found"),
    (NotFound, 404, "Session not found for program sampler"),
    (QuantumRuntimeError, 400, "The program input does not match the schema: unknown key"),
    (QuantumRuntimeError, 400, "Instance not available for sampler"),
    (QuantumRuntimeError, 400, "The sampler takes at most 10 million executions."),
    (QuantumRuntimeError, 409, "Program sampler not found"),
    (ServiceUnavailable, 503, "Program sampler not available"),
    (SubmissionUncertain, None, "Program sampler not found"),
    (ValueError, None, "Program sampler not found"),
]


@pytest.mark.parametrize(("kind", "status", "text"), [*GONE, *NOT_GONE])
def test_only_a_refusal_that_names_the_program_lets_auto_turn(kind: Any, status: int | None, text: str) -> None:
    error = kind(text, status=status) if issubclass(kind, QuantumRuntimeError) else kind(text)
    assert program_is_gone(error, "sampler") == ((kind, status, text) in GONE)


def test_turning_keeps_the_digest() -> None:
    spec = make_spec([(BELL, None, 10)], backend="b", route="auto")
    assert (spec.route, spec.wire_program, spec.may_turn) == ("service", "sampler", True)
    turned = on_executor(spec)
    assert (turned.route, turned.wire_program, turned.program_id) == ("executor", "executor", "sampler")
    assert turned.digest() == spec.digest()
    assert v2_params(turned) == turned.prepared
    with pytest.raises(InvalidInput, match="legacy dialect has no executor"):
        v1_params(turned)


def test_what_changes_without_an_option_is_said() -> None:
    def notices(**given: Any) -> tuple[str, ...]:
        pub = (BELL, "ZZ") if given.get("program_id") else BELL
        return route_notices(make_spec([pub], backend="b", **given))

    assert "without error mitigation" in notices(program_id="estimator", route="executor")[0]
    assert notices(program_id="estimator", route="executor", options={"resilience_level": 0}) == ()
    assert notices(program_id="estimator") == ()
    assert notices(route="executor") == ()
    with pytest.raises(InvalidInput, match="raw params="):
        on_executor(make_spec(None, backend="b", program_id="noise-learner", params={"a": 1}))
