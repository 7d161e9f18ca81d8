"""Check request bodies against IBM's OpenAPI document; the service is strict, so this is too.

The schemas are package data, made by `tests/schemas/make_request_schemas.py` from the restated document and from
additions for what it leaves out. A check returns nothing or raises the service's 400, which names the field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import Any

import orjson

from prefect_qruntime.redact import many
from prefect_qruntime.sandbox.api_errors import ApiError, invalid

_SHOWN = 80


def check(schema: str, where: str, value: Any) -> None:
    """Check a value by a named schema.

    Args:
        schema: Name of the schema in `components/schemas`.
        where: Name of the value in a message.
        value: The value.

    Raises:
        ApiError: 400; code 1204 or 1205 for tags, else 1208.
    """
    from jsonschema.exceptions import best_match

    try:
        error = best_match(_validator(schema).iter_errors(value))
    except RecursionError:
        raise invalid("The body is nested too deeply.") from None
    if error is not None:
        raise _refusal(error, where)


def check_params(program_id: str, legacy: bool, params: Any) -> None:
    """Check the params of a job for its program.

    Raises:
        ApiError: 400 for params that do not fit or a program that is not offered, 404 for one that does not exist.
    """
    if program_id not in ("sampler", "estimator", *_VERSIONED):
        raise ApiError(404, "not_found", f"program not found: {program_id}")
    if program_id in _VERSIONED and legacy:
        raise ApiError(400, 1208, f"The program {program_id!r} is not offered here.")
    if params is None:
        raise invalid("params is missing.")
    check("Params", "params", params)
    if program_id == "noise-learner" and "schema_version" not in params:
        check("NoiseLearnerParams", "params", params)
        return
    if program_id in _VERSIONED:
        _check_versioned(program_id, params)
        return
    version = "V1" if legacy and params.get("version", 1) == 1 else ""
    check(f"{program_id.capitalize()}{version}Params", "params", params)


# The programs whose params name the version of their schema, the default version, and the schemas.
_VERSIONED: dict[str, tuple[str, dict[str, str]]] = {
    "executor": (
        "v0.2",
        {
            "v0.1": "ExecutorV01Checked",
            "v0.2": "ExecutorV02Checked",
            "v1.0": "ExecutorV1Checked",
            "v1.1": "ExecutorV1Checked",
            "v2.0": "ExecutorV2Checked",
        },
    ),
    "noise-learner": (
        "",
        {
            "v0.1": "NoiseLearnerV3V01Params",
            "v0.2": "NoiseLearnerV3V02Params",
            "v0.3": "NoiseLearnerV3V03Params",
        },
    ),
    "calibrate": ("v0.1", {"v0.1": "CalibratorParams"}),
}


def _check_versioned(program_id: str, params: dict[str, Any]) -> None:
    default, schemas = _VERSIONED[program_id]
    version = params.get("schema_version", default)
    if not isinstance(version, str) or version not in schemas:
        raise invalid(f"params.schema_version must be one of {', '.join(schemas)}, not {_short(version)}.")
    check(schemas[version], "params", params)
    if program_id == "executor":
        _check_items(params["quantum_program"])


def _check_items(program: dict[str, Any]) -> None:
    items, circuits = program["items"], program.get("circuits", {})
    count = circuits.get("num_programs", len(circuits.get("data", items)))
    if count != len(items):
        raise invalid(f"params.quantum_program needs a circuit for each item: {count} for {len(items)} items.")
    automatic = {item.get("chunk_size", "auto") == "auto" for item in items}
    if len(automatic) > 1:
        raise invalid("params.quantum_program.items must all have the chunk_size auto, or none of them.")


@cache
def _schemas() -> Any:
    return orjson.loads(resources.files(__package__).joinpath("request_schemas.json").read_bytes())


@cache
def _validator(name: str) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", **_schemas()})


def _refusal(error: Any, root: str) -> ApiError:
    """Turn an error of jsonschema, whose own texts may repeat the whole body, into the service's."""
    where = root + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in error.absolute_path)
    in_tags = "Tags" in str(error.schema_path) or (error.absolute_path and error.absolute_path[0] == "tags")
    if in_tags and error.validator == "maxItems":
        return ApiError(400, 1204, "Too many tags: at most 8 are allowed.", "Send fewer tags.")
    if in_tags and error.validator == "maxLength":
        return ApiError(400, 1205, "A tag is longer than 86 characters.", "Send shorter tags.")
    if error.validator == "additionalProperties":
        unknown = sorted(error.instance.keys() - error.schema.get("properties", {}).keys())
        return invalid(f"{where} has an unknown key {_short(unknown[0])}.", "Remove it or check its spelling.")
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        return invalid(f"{where} needs the key {missing[0]!r}.")
    rule = _RULES.get(error.validator)
    wanted = rule(error.validator_value) if rule is not None else "be of another form"
    return invalid(f"{where} must {wanted}, not {_short(error.instance)}.")


def _kinds(value: str | Sequence[str]) -> str:
    names = [value] if isinstance(value, str) else value
    return "be " + " or ".join(_KIND_NAMES[name] for name in names)


_KIND_NAMES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "a string",
}
_RULES: dict[str, Callable[[Any], str]] = {
    "type": _kinds,
    "enum": lambda allowed: f"be one of {', '.join(map(str, allowed))}",
    "const": lambda allowed: f"be {allowed}",
    "minimum": lambda bound: f"be at least {bound}",
    "maximum": lambda bound: f"be at most {bound}",
    "exclusiveMinimum": lambda bound: f"be above {bound}",
    "minLength": lambda bound: f"have at least {many(bound, 'character')}",
    "maxLength": lambda bound: f"have at most {many(bound, 'character')}",
    "minItems": lambda bound: f"have at least {many(bound, 'item')}",
    "maxItems": lambda bound: f"have at most {many(bound, 'item')}",
}


def _short(value: Any) -> str:
    """Show a value within a message; long ones are cut, lists and objects are only counted."""
    if isinstance(value, list):
        return f"a list of {many(len(value), 'item')}"
    if isinstance(value, dict):
        return f"an object with {many(len(value), 'key')}"
    text = repr(value) if not isinstance(value, str) else repr(value[: _SHOWN + 1])
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
