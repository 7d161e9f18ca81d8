"""Submission keys: equal in every repetition, different for everything else; nothing is bought on a guess."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from prefect_qruntime.client.submission_keys import explicit_identity, flow_tag, key_tag, next_generation
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import Job, JobRef

INTENT: dict[str, Any] = {"crn": "crn:1", "identity": "run-1", "digest": "d1", "index": 0, "generation": 0}


def tag(**changes: Any) -> str:
    given = {**INTENT, **changes}
    return key_tag(given.pop("crn"), given.pop("identity"), given.pop("digest"), **given)


def bought(tags: tuple[str, ...]) -> JobRef:
    return Job(id="j", status=None, tags=tags).ref()


def test_a_key_is_stable_over_releases() -> None:
    # A job bought before an upgrade is found after it; a change of this value would buy it again.
    assert tag() == "qr-key:04c3184eafe70d9588492903b9f87c0c"


def test_whatever_makes_another_intent_makes_another_key() -> None:
    choices = {
        "crn": ["crn:1", "crn:2"],
        "identity": ["run-1", "run-2", "explicit:run-1"],
        "digest": ["d1", "d2"],
        "index": [0, 1],
        "generation": [0, 1],
    }
    tags = [tag(**dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())]
    assert len(set(tags)) == len(tags)


@pytest.mark.parametrize(("index", "generation"), [(0, 0), (2, 0), (0, 1), (1, 7)])
def test_the_generation_after_a_job(index: int, generation: int) -> None:
    job = bought(("mine", tag(index=index, generation=generation)))
    assert next_generation(job, "crn:1", "run-1", "d1", submitted_so_far=3) == (index, generation + 1)


@pytest.mark.parametrize(
    "job",
    [
        bought(()),
        bought(("mine",)),
        bought((tag(index=3),)),
        bought((tag(generation=100),)),
        bought((tag(digest="d2"),)),
        bought((tag(identity="run-2"),)),
    ],
)
def test_a_job_of_another_submission_is_refused(job: JobRef) -> None:
    with pytest.raises(InvalidInput, match="does not belong to this submission"):
        next_generation(job, "crn:1", "run-1", "d1", submitted_so_far=3)


@pytest.mark.parametrize("key", ["nightly", "nightly/2026-11-23T03:00", "ü" * 1000])
def test_explicit_keys(key: str) -> None:
    assert explicit_identity(key) == f"explicit:{key}"


@pytest.mark.parametrize("key", ["", "  ", None, 7, "x" * 1001, "a\nb", "a\x1b[0m"])
def test_what_is_no_explicit_key(key: Any) -> None:
    with pytest.raises(InvalidInput, match="submission_key"):
        explicit_identity(key)


def test_the_tag_of_a_flow_run() -> None:
    assert flow_tag("0b9f") == "qr-flow:0b9f"
