"""What is wrong with a block is said without the values that were given to it: one of them is an API key."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, computed_field

from prefect_qruntime import QuantumRuntimeCredentials, QuantumRuntimeError, QuantumRuntimeJob
from prefect_qruntime.blocks import Budget, QuantumRuntimePolicy
from prefect_qruntime.prefect_api import Loadable

KEY = "Zk3yABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcd"
CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:11aa-22bb::"
BLOCKS: tuple[type[Any], ...] = (QuantumRuntimeCredentials, QuantumRuntimeJob, QuantumRuntimePolicy, Budget)
GOOD = {"api_key": KEY, "crn": CRN}


def wrong() -> Iterator[Any]:
    """Each field of each block with values of wrong types, each required one left out, and fields misspelt."""
    good: dict[type[Any], dict[str, Any]] = {
        QuantumRuntimeCredentials: GOOD,
        QuantumRuntimeJob: {"credentials": GOOD, "backend": "b"},
        QuantumRuntimePolicy: {},
        Budget: {},
    }
    for block in BLOCKS:
        for field in block.model_fields:
            for kind, value in (("list", [KEY]), ("dict", {"a": KEY}), ("text", KEY), ("bytes", KEY.encode())):
                yield pytest.param(block, {**good[block], field: value}, id=f"{block.__name__}-{field}-{kind}")
            less = {name: value for name, value in good[block].items() if name != field}
            yield pytest.param(block, less, id=f"{block.__name__}-without-{field}")
            yield pytest.param(block, {**less, field.upper(): KEY}, id=f"{block.__name__}-{field.upper()}")
    yield pytest.param(QuantumRuntimeJob, {"credentials": {"api_key": KEY}, "backend": "b"}, id="nested")
    yield pytest.param(QuantumRuntimeCredentials, {**GOOD, "proxy": f"http://u:{KEY}@h:99999"}, id="proxy")


class Holder(BaseModel):
    """As Prefect checks the parameters of a flow."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    credentials: QuantumRuntimeCredentials


def held(error: BaseException) -> str:
    """All that an error shows or keeps, itself and in the frames of its traceback outside this file."""
    parts, one = list[str](), error
    while one is not None:
        parts += [str(one), repr(one), repr(one.args), repr(getattr(one, "details", None))]
        parts += [str(one.errors())] if isinstance(one, ValidationError) else [str(pickle.dumps(one))]
        trace = one.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename != __file__:
                for name, value in trace.tb_frame.f_locals.items():
                    shown = vars(value.__self__) if isinstance(value, super) else value  # as rich shows it
                    parts.append(f"{name}: {shown!r}")
            trace = trace.tb_next
        one = one.__cause__ or one.__context__  # type: ignore[assignment]
    return "\n".join(parts)


def test_all_blocks_are_built_this_way() -> None:
    assert {kind for kind in Loadable.__subclasses__() if kind.__module__.startswith("prefect_qruntime")} == {*BLOCKS}


@pytest.mark.parametrize(("block", "values"), list(wrong()))
def test_a_wrong_block_does_not_show_what_was_given(block: type[Any], values: dict[str, Any]) -> None:
    caught = list[Exception]()
    for build in (lambda: block(**values), lambda: TypeAdapter(block).validate_python(values)):
        try:
            build()
        except (ValidationError, QuantumRuntimeError) as error:
            caught.append(error)
    if caught:
        assert str(caught[0]) == str(caught[1])
        caught[1].__traceback__ = None  # the validator is called by code that holds the values
    for error in caught:
        assert KEY not in held(error)
        assert KEY[:12] not in held(error)


@pytest.mark.parametrize("given", [{"api_key": KEY}, {"api_key": [KEY], "crn": CRN}, {**GOOD, "request_timeout": KEY}])
def test_nor_does_a_model_that_holds_one(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Holder.model_validate({"credentials": given})
    caught.value.__traceback__ = None
    assert KEY not in held(caught.value)


def test_the_field_is_named_and_the_misspelt_one_beside_it() -> None:
    with pytest.raises(ValidationError, match=r"(?s)crn\n  Field required; not a field: CRN") as caught:
        QuantumRuntimeCredentials(api_key=KEY, CRN=CRN)  # type: ignore[call-arg,arg-type]
    assert [(one["loc"], one["type"]) for one in caught.value.errors()] == [(("crn",), "missing")]


MISSPELT = [
    (block, field, name)
    for block in BLOCKS
    for field in block.model_fields
    for name in (field.upper(), field[:-1], f"{field}_s", f"{field[0]}{field}", field.replace("_", "-"))
    if name and name not in block.model_fields
]
GIVEN: dict[type[Any], dict[str, Any]] = {
    QuantumRuntimeCredentials: GOOD,
    QuantumRuntimeJob: {"credentials": GOOD, "backend": "b"},
}


@pytest.mark.parametrize(("block", "field", "name"), MISSPELT)
def test_a_misspelt_field_is_refused_because_a_limit_in_it_limits_nothing(
    block: type[Any], field: str, name: str
) -> None:
    values = GIVEN.get(block, {}) | {name: KEY}
    made = block(**GIVEN.get(block, {}))
    caught = list[Exception]()
    for build in (
        lambda: block(**values),
        lambda: TypeAdapter(block).validate_python(values),
        lambda: block.model_validate(values),
        lambda: setattr(made, name, KEY),
    ):
        with pytest.raises(ValidationError, match="Not a field of this block") as refused:
            build()
        caught.append(refused.value)
    for error in caught[:1] + caught[3:]:
        assert KEY not in held(error)
        assert not name.isidentifier() or f"Did you mean '{field}'?" in str(error)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_number_that_the_form_saves_empty_is_as_if_it_was_not_given(block: type[Any]) -> None:
    given = GIVEN.get(block, {})
    plain = block(**given)
    for name, field in block.model_json_schema()["properties"].items():
        kinds = {field.get("type"), *(one.get("type") for one in field.get("anyOf", ()))}
        if kinds & {"integer", "number"}:
            assert getattr(block(**given, **{name: None}), name) == getattr(plain, name), name
            assert getattr(block.model_validate({**given, name: None}), name) == getattr(plain, name), name
    if block is QuantumRuntimePolicy:  # what is no number is never taken for not given: it may open a policy
        with pytest.raises(ValidationError, match="refuse_unnamed"):
            block(refuse_unnamed=None)


@pytest.mark.parametrize("block", BLOCKS)
def test_what_prefect_adds_to_a_document_is_no_field_and_no_fault(block: type[Any]) -> None:
    given = GIVEN.get(block, {})
    made = block.model_validate({**given, "block_type_slug": block.get_block_type_slug(), "_block_document_name": "n"})
    for field, value in given.items():
        setattr(made, field, getattr(block(**given), field))
        assert getattr(made, field) is not None, value
    assert block.model_validate(made.model_dump()) is not None


class Labelled(QuantumRuntimeCredentials):
    _block_type_name = "Labelled Credentials"
    _block_type_slug = "labelled-credentials"

    label: str = Field(default="", alias="lab-el")
    room: str = Field(default="", validation_alias=AliasChoices("place", AliasPath("where", 0)))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def shown(self) -> str:
        return f"{self.label}{self.room}"


def test_a_subclass_keeps_its_aliases_and_computed_fields() -> None:
    made = Labelled.model_validate({**GOOD, "lab-el": "a", "where": ["b"]})
    assert made.shown == "ab"
    assert made.model_dump(by_alias=True)["shown"] == "ab"
    assert Labelled.model_validate(made.model_dump(by_alias=True)).label == "a"
    with pytest.raises(ValidationError, match="Did you mean 'label'"):
        Labelled.model_validate({**GOOD, "labell": "a"})
