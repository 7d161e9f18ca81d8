"""Lists of jobs by offset, workloads by cursor: filters, pages, and never a part for the whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import orjson
import pytest
from pytest_httpx import HTTPXMock

from prefect_qruntime.client import QuantumRuntimeClient, service as module
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError, ServiceUnavailable
from tests.support.mock_client import sent

BASE = "https://quantum.cloud.ibm.com/api/v1"
Connect = Callable[..., QuantumRuntimeClient]


def job(n: int, *tags: str) -> dict[str, Any]:
    return {"id": f"d{n}", "state": {"status": "Queued"}, "tags": list(tags)}


def serve(mock: HTTPXMock, jobs: list[dict[str, Any]], *, count: bool, most: int = 200) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        offset, limit = int(request.url.params.get("offset", 0)), int(request.url.params["limit"])
        limit = limit if 1 <= limit <= most else most
        body: dict[str, Any] = {"jobs": jobs[offset : offset + limit], "offset": offset, "limit": limit}
        if count:
            body["count"] = len(jobs)
        return httpx.Response(200, json=body)

    mock.add_callback(answer, method="GET", is_reusable=True)


@pytest.mark.parametrize("count", [True, False])
@pytest.mark.parametrize(("total", "requests"), [(0, 1), (199, 1), (200, 1), (450, 3)])
def test_all_jobs(iam: HTTPXMock, connect: Connect, count: bool, total: int, requests: int) -> None:
    serve(iam, [job(n) for n in range(total)], count=count)
    client = connect()
    found = client.run(client.jobs())
    assert [j.id for j in found] == [f"d{n}" for n in range(total)]
    # Without a count a full page may always be followed by another.
    assert len(sent(iam)) == requests + (not count and total == 200)
    assert {r.url.params["exclude_params"] for r in sent(iam)} == {"true"}


def test_a_limit_asks_for_no_more_than_it_needs(iam: HTTPXMock, connect: Connect) -> None:
    serve(iam, [job(n) for n in range(50)], count=True)
    client = connect()
    assert len(client.run(client.jobs(limit=7))) == 7
    assert [r.url.params["limit"] for r in sent(iam)] == ["7"]


def test_tags_are_asked_for_and_filtered_again(iam: HTTPXMock, connect: Connect) -> None:
    # A service that takes several tags as "or", or none at all into account.
    serve(iam, [job(1, "a", "b"), job(2, "a"), job(3, "b"), job(4, "ab"), job(5, "b", "c", "a")], count=True)
    client = connect()
    assert [j.id for j in client.run(client.jobs(tags=("a", "b")))] == ["d1", "d5"]
    assert sent(iam)[0].url.params.get_list("tags") == ["a", "b"]
    assert [j.id for j in client.run(client.jobs_tagged("a"))] == ["d1", "d2", "d5"]


def test_filters(iam: HTTPXMock, connect: Connect) -> None:
    serve(iam, [], count=True)
    client = connect()
    moment = datetime(2026, 5, 1, 10, tzinfo=UTC)
    asked = client.jobs(
        pending=True, backend="b", program="sampler", session_id="s", created_after=moment, created_before=moment
    )
    client.run(asked)
    params = dict(sent(iam)[0].url.params)
    assert params == {
        "exclude_params": "true",
        "limit": "200",
        "pending": "true",
        "backend": "b",
        "program": "sampler",
        "session_id": "s",
        "created_after": "2026-05-01T10:00:00Z",
        "created_before": "2026-05-01T10:00:00Z",
    }


MOMENT = datetime(2026, 5, 1, 10, tzinfo=UTC)
WRONG: list[tuple[str, dict[str, Any]]] = [
    *(("tags", {"tags": tags}) for tags in ("mine", b"mine", None, [None], ["a", 1], 5, {"a": 1}.values())),
    *(("pending", {"pending": flag}) for flag in ("false", "yes", 0, 1, [])),
    *(("mocks", {"mocks": flag}) for flag in ("no", 1)),
    *(("limit", {"limit": limit}) for limit in ("1", 1.0, True, -1, [1])),
    *(
        (name, {name: moment})
        for name in ("created_after", "created_before")
        for moment in (
            MOMENT.replace(tzinfo=None),
            MOMENT.date(),
            MOMENT.isoformat(),
            MOMENT.timestamp(),
            0,
            "yesterday",
        )
    ),
    *((name, {name: wrong}) for name in ("backend", "program", "session_id") for wrong in (1, b"x", ["x", 2])),
    *((name, {name: "x"}) for name in ("created_befor", "sesion_id", "status", "backends", "phases")),
]


@pytest.mark.parametrize(("field", "given"), WRONG, ids=[f"{n}-{c[0]}" for n, c in enumerate(WRONG)])
def test_a_filter_that_would_filter_nothing_or_everything_is_refused(
    connect: Connect, field: str, given: dict[str, Any]
) -> None:
    client = connect()
    with pytest.raises(InvalidInput) as caught:
        client.run(client.jobs(**given))
    assert caught.value.field == field
    if field == "tags":
        with pytest.raises(InvalidInput) as caught:
            client.run(client.replace_tags("d1", **given))
        assert caught.value.field == "tags"
    if field in ("limit", "created_after", "created_before", "created_befor", "sesion_id"):
        with pytest.raises(InvalidInput) as caught:
            client.run(client.workloads(**given))
        assert caught.value.field == field


def test_a_job_that_slides_to_the_next_page_is_one_job(iam: HTTPXMock, connect: Connect) -> None:
    jobs = [job(n, "key") for n in range(200)]
    iam.add_response(json={"jobs": jobs, "count": 201})
    iam.add_response(json={"jobs": [jobs[-1]], "count": 201})  # one more was created meanwhile
    client = connect()
    assert len(client.run(client.jobs_tagged("key"))) == 200


def test_a_part_is_never_given_for_the_whole(iam: HTTPXMock, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_PAGES", 2)
    serve(iam, [job(n) for n in range(450)], count=True)
    client = connect()
    with pytest.raises(QuantumRuntimeError, match="more than 400 jobs"):
        client.run(client.jobs_tagged("key"))


@pytest.mark.parametrize("body", [{}, {"jobs": None}, {"jobs": {}}, []])
def test_a_list_that_is_none(iam: HTTPXMock, connect: Connect, body: Any) -> None:
    iam.add_response(json=body, is_reusable=True)
    client = connect()
    with pytest.raises(ServiceUnavailable, match="in between"):
        client.run(client.jobs())


SHOWN = {"id": "d1", "status": "Queued", "state": {"status": "Queued"}, "program": {"id": "sampler"}, "backend": "b"}


@pytest.mark.parametrize(
    "entry",
    [
        *("d1", None, 7, [], {}, {"status": "Queued"}, SHOWN),
        *({**SHOWN, "tags": tags} for tags in (None, "key", {"key": 1}, 7, [None], ["key", 7])),
    ],
)
def test_a_job_found_by_its_tag_is_shown_with_it(iam: HTTPXMock, connect: Connect, entry: Any) -> None:
    """It may be the job that is searched for: an answer that hides it is none, or the job would be bought again."""
    iam.add_response(json={"jobs": [job(2, "key"), entry], "count": 2}, is_reusable=True)
    with pytest.raises(ServiceUnavailable):
        connect().run(connect().jobs_tagged("key"))


@pytest.mark.parametrize("others", [b"", b'"mine", ', b'"mine\xc3", '])
def test_a_tag_that_cannot_be_read_may_be_the_one_that_is_searched_for(
    iam: HTTPXMock, connect: Connect, others: bytes
) -> None:
    whole = orjson.dumps(SHOWN)[:-1]
    listed = b'{"jobs": [%b, "tags": [%b"%b"]}], "count": 1}'
    iam.add_response(content=listed % (whole, others, b"key\xff"), is_reusable=True)
    with pytest.raises(ServiceUnavailable):
        connect().run(connect().jobs_tagged("key"))


def test_a_tag_of_a_user_that_cannot_be_read_hides_no_job(iam: HTTPXMock, connect: Connect) -> None:
    body = b'{"jobs": [%b, "tags": ["mine\xc3", "key"]}], "count": 1}' % orjson.dumps(SHOWN)[:-1]
    iam.add_response(content=body)
    assert [one.id for one in connect().run(connect().jobs_tagged("key"))] == ["d1"]


def test_jobs_are_found_by_a_tag_that_is_masked_when_it_is_shown(iam: HTTPXMock, connect: Connect) -> None:
    tag = "apikey=old-and-revoked"
    iam.add_response(json={"jobs": [{**SHOWN, "tags": [tag]}], "count": 1})
    (found,) = connect().run(connect().jobs_tagged(tag))
    assert found.tags == ("apikey=********",)


def item(n: int) -> dict[str, Any]:
    return {"id": f"w{n}", "mode": "session"}


def test_workloads_follow_the_cursor_but_not_to_another_host(iam: HTTPXMock, connect: Connect) -> None:
    iam.add_response(
        url=f"{BASE}/workloads?mode=session&tags=a&tags=b&created_after=2026-05-01T10%3A00%3A00Z&limit=50",
        json={
            "workloads": [item(1), 7],
            "next": {"href": "https://evil.example/workloads?cursor=c1&limit=50&tags=a&tags=b"},
        },
    )
    iam.add_response(
        url=f"{BASE}/workloads?mode=session&tags=a&tags=b&created_after=2026-05-01T10%3A00%3A00Z&limit=50&cursor=c1",
        json={"workloads": [item(2)], "next": "/v1/workloads?cursor=c2"},
    )
    iam.add_response(
        url=f"{BASE}/workloads?mode=session&tags=a&tags=b&created_after=2026-05-01T10%3A00%3A00Z&limit=50&cursor=c2",
        json={"workloads": [item(3)], "next": None},
    )
    client = connect()
    moment = datetime(2026, 5, 1, 10, tzinfo=UTC)
    found = client.run(client.workloads(mode="session", tags=("a", "b"), created_after=moment))
    assert [w["id"] for w in found] == ["w1", "w2", "w3"]
    assert {r.url.host for r in sent(iam)} == {"quantum.cloud.ibm.com"}


def test_workloads_stop_at_the_limit(iam: HTTPXMock, connect: Connect) -> None:
    numbers = itertools.count()

    def answer(request: httpx.Request) -> httpx.Response:
        page = [item(next(numbers)) for _ in range(int(request.url.params["limit"]))]
        return httpx.Response(200, json={"workloads": page, "next": {"href": "?cursor=x"}})

    iam.add_callback(answer, is_reusable=True)
    client = connect()
    assert len(client.run(client.workloads(limit=3))) == 3
    assert len(client.run(client.workloads(limit=60))) == 60
    assert [r.url.params["limit"] for r in sent(iam)] == ["3", "50", "50"]
    with pytest.raises(QuantumRuntimeError, match="more than 10000 workloads"):  # never a part as the whole
        client.run(client.workloads())
