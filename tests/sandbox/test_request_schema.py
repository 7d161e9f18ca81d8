"""Refusals by the OpenAPI document: the service's container, its codes, and the field that is wrong."""

import pytest

from prefect_qruntime.sandbox.request_schema import check
from tests.schemas import make_request_schemas
from tests.support.sandbox_api import BELL


def test_the_package_data_is_what_the_script_makes():
    assert make_request_schemas.TARGET.read_text() == make_request_schemas.make()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"colour": 1}, "body has an unknown key 'colour'."),
        ({"cost": "ten"}, "body.cost must be an integer, not 'ten'."),
        ({"cost": -1}, "body.cost must be at least 0, not -1."),
        ({"session_id": ""}, "body.session_id must have at least 1 character, not ''."),
        ({"private": 1}, "body.private must be true or false, not 1."),
        ({"params": {}}, "params needs the key 'pubs'."),
        ({"params": [1]}, "body.params must be an object, not a list of 1 item."),
        ({"params": {"pubs": [[BELL]], "shots": 1.5}}, "params.shots must be an integer or null, not 1.5."),
        ({"params": {"pubs": [[BELL], 7]}}, "params.pubs[1] must be a list or a string or an object, not 7."),
        (
            {"params": {"pubs": [[BELL, None, 1, 2]]}},
            "params.pubs[0] must have at most 3 items, not a list of 4 items.",
        ),
        ({"params": {"pubs": [[BELL]], "options": {"x": 1}}}, "params.options has an unknown key 'x'."),
        (
            {"params": {"pubs": [[BELL]], "options": {"twirling": {"strategy": "some"}}}},
            "params.options.twirling.strategy must be one of active, active-circuit, active-accum, all, not 'some'.",
        ),
        (
            {"params": {"pubs": [[BELL]], "options": {"twirling": {"num_randomizations": 0}}}},
            "params.options.twirling.num_randomizations must be at least 1, not 0.",
        ),
    ],
)
def test_the_message_names_the_field(cloud, fields, message):
    answer = cloud.submit(**fields)
    assert answer.status_code == 400
    error = answer.json()["errors"][0]
    assert (error["code"], error["message"]) == (1208, message)
    assert cloud.control.jobs() == []


def test_a_huge_value_is_not_repeated(cloud):
    answer = cloud.submit(program="sampler", params={"pubs": [[BELL]], "version": "9" * 1_000_000})
    assert answer.status_code == 400
    assert len(answer.content) < 1000


def test_an_object_that_fits_passes():
    check("CreateSessionRequest", "body", {"mode": "batch", "max_ttl": 60.0})
