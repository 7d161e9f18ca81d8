"""What the policy allows, and that nothing is allowed where it cannot be read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.blocks.core import Block
from prefect.exceptions import ObjectNotFound
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import ValidationError

from prefect_qruntime import PolicyRefused, QuantumRuntimeCredentials, QuantumRuntimePolicy
from prefect_qruntime.admission import policy as module
from prefect_qruntime.admission.guard import admission_guard
from prefect_qruntime.admission.policy import (
    Asked,
    PolicyRule,
    TeamShare,
    Tenant,
    host_refusal,
    limits,
    refusal,
    share_of,
)
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.inputs.spec import JobSpec
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.run_context import RunContext

CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:11aa-22bb::"
IBM, IAM = "https://quantum.cloud.ibm.com/api/v1", "https://iam.cloud.ibm.com"
NOWHERE = RunContext(None, "call:1", False, False, 0, 0.0)


class TestTheBlock(BlockStandardTestSuite):
    """Prefect's own rules for blocks."""

    @pytest.fixture
    def block(self) -> type[Block]:
        return QuantumRuntimePolicy

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        """Without the network: it is the one of the credentials block."""
        assert block._logo_url == QuantumRuntimeCredentials._logo_url


@pytest.mark.parametrize(
    ("base_url", "iam_url", "allowed"),
    [
        (IBM, IAM, True),
        ("https://eu-de.quantum.cloud.ibm.com/api/v1", IAM, True),
        (IBM, "https://iam.cloud.ibm.com:443", True),
        (IBM, "https://iam.cloud.ibm.com:8443", False),
        (IBM, "https://iam.cloud.ibm.com.evil.example", False),
        (IBM, "https://evil.example/iam.cloud.ibm.com", False),
        ("https://evilquantum.cloud.ibm.com/api/v1", IAM, False),
        ("https://quantum.cloud.ibm.com@evil.example/api/v1", IAM, False),
        ("http://127.0.0.1:8000/api/v1", IAM, False),
    ],
)
def test_where_a_key_may_go(base_url: str, iam_url: str, allowed: bool) -> None:
    assert (host_refusal(QuantumRuntimePolicy(), base_url, iam_url) is None) is allowed
    assert host_refusal(QuantumRuntimePolicy(hosts=[]), base_url, iam_url) is None


def test_a_host_of_the_policy_may_have_a_port() -> None:
    pinned = QuantumRuntimePolicy(hosts=["127.0.0.1:8000", "IAM.cloud.ibm.com"])
    assert host_refusal(pinned, "http://127.0.0.1:8000/api/v1", IAM) is None
    assert "base_url" in str(host_refusal(pinned, "http://127.0.0.1:8001/api/v1", IAM))


RESEARCH = Tenant("main", "nightly", frozenset({"research"}), "pool-a", "ibm")
RULES = QuantumRuntimePolicy(
    rules=[
        PolicyRule(max_execution_time=600),
        PolicyRule(tag="research", backends=["ibm_*"], programs=["sampler"], max_execution_time=60),
        PolicyRule(deployment="other/*", backends=["none"]),
        PolicyRule(work_pool="pool-a", max_session_seconds=100),
        PolicyRule(block="ibm-open", max_session_seconds=0),
    ]
)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (Asked("ibm_fez", "sampler"), None),
        (Asked("ibm_fez", "sampler", 60), None),
        (Asked("ibm_fez", "sampler", 61), "at most 60 s"),
        (Asked("aer", "sampler"), "backend 'aer'"),
        (Asked("ibm_fez", "estimator"), "program 'estimator'"),
        (Asked("ibm_fez", session_seconds=100), None),
        (Asked("ibm_fez", session_seconds=0), None),
        (Asked("ibm_fez", session_seconds=101), "at most 100 s"),
    ],
)
def test_all_rules_that_name_a_tenant_hold(asked: Asked, why: str | None) -> None:
    found = refusal(RULES, RESEARCH, asked)
    assert (found is None) if why is None else (found is not None and why in found)


def test_rules_for_others_do_not_hold() -> None:
    stranger = Tenant("main", "other", block="ibm-open")
    assert refusal(RULES, stranger, Asked("aer", "estimator", 600)) is None
    assert "no dedicated session is allowed" in str(refusal(RULES, stranger, Asked("aer", session_seconds=0)))
    assert "backend 'aer' is not allowed" in str(refusal(RULES, Tenant("other", "daily"), Asked("aer")))
    assert limits(RULES, RESEARCH) == (60, 100)
    assert limits(RULES, Tenant()) == (600, None)
    assert limits(QuantumRuntimePolicy(), RESEARCH) == (None, None)


def test_what_no_rule_names_may_be_refused() -> None:
    closed = QuantumRuntimePolicy(rules=[PolicyRule(deployment="nightly")], refuse_unnamed=True)
    assert refusal(closed, RESEARCH, Asked("aer")) is None
    assert "no rule" in str(refusal(closed, Tenant(), Asked("aer")))


def test_a_share_is_found_by_tag_or_work_pool() -> None:
    shares = [TeamShare(name="a", tag="team-a", weight=3), TeamShare(name="b", work_pool="pool-*")]
    both = QuantumRuntimePolicy(shares=shares)
    assert share_of(both, Tenant(tags=frozenset({"team-a"}), work_pool="pool-1")) == shares[0]
    assert share_of(both, Tenant(work_pool="pool-1")) == shares[1]
    assert share_of(both, Tenant(tags=frozenset({"team"}))) is None


@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, field) for kind in (PolicyRule, TeamShare) for field in kind.model_fields if field != "name"],
)
def test_null_in_a_rule_or_share_is_a_field_that_is_not_given(
    kind: type[PolicyRule] | type[TeamShare], field: str
) -> None:
    needed = {"name": "a", "tag": "x", "work_pool": "y"} if kind is TeamShare else {}
    assert kind(**{**needed, field: None}) == kind(**{one: value for one, value in needed.items() if one != field})  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=f"{field}_"):
        kind(**needed, **{f"{field}_": None})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["teaching", "vqe [nightly]", "[a-z]", "why?", "a!b", "a b", "x]"])
@pytest.mark.parametrize("around", ["{}", " {}", "{}\n"])
@pytest.mark.parametrize("wild", ["{}", "{}*", "*{}"])
def test_a_name_fits_itself_as_a_form_gives_it_and_no_other(name: str, around: str, wild: str) -> None:
    given = around.format(wild.format(name))
    tenant = Tenant("main", name, frozenset({name}), name, name)
    other = Tenant("main", "z", frozenset({"z"}), "z", "z")
    for field in ("deployment", "tag", "work_pool", "block"):
        policy = QuantumRuntimePolicy(rules=[{field: given, "max_execution_time": 30}])  # type: ignore[list-item]
        assert limits(policy, tenant) == (30, None), field
        assert limits(policy, other) == (None, None), field
    for field in ("tag", "work_pool"):
        policy = QuantumRuntimePolicy(shares=[{"name": "a", field: given}])  # type: ignore[list-item]
        assert share_of(policy, tenant) is not None, field
        assert share_of(policy, other) is None, field
    spaced = Tenant("main", f" {name}", frozenset({f"{name} "}), f"{name}\t", f" {name} ")
    for field in ("deployment", "tag", "work_pool", "block"):
        policy = QuantumRuntimePolicy(rules=[{field: given, "max_execution_time": 30}])  # type: ignore[list-item]
        assert limits(policy, spaced) == (30, None), field
    for field, asked in (("backends", Asked(name)), ("programs", Asked("b", name))):
        policy = QuantumRuntimePolicy(rules=[{field: [given]}])  # type: ignore[list-item]
        assert refusal(policy, tenant, asked) is None, field
        assert "not allowed" in str(refusal(policy, tenant, Asked("z", "z"))), field


@pytest.mark.parametrize(
    "wrong",
    [
        {"hosts": ["https://iam.cloud.ibm.com"]},
        {"hosts": [""]},
        {"shares": [{"name": "a"}]},
        {"shares": [{"name": "a", "tag": " "}]},
        {"shares": [{"name": "a", "tag": "x"}, {"name": "a", "tag": "y"}]},
        {"rules": [{"backend": "ibm_fez"}]},
        {"rules": [{"max_execution_time": 0}]},
    ],
)
def test_what_is_no_policy(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        QuantumRuntimePolicy(**wrong)


class Server:
    """Prefect's API as the policy asks it."""

    def __init__(self) -> None:
        self.data: dict[str, Any] | Exception = ObjectNotFound(Exception())
        self.name = "qruntime-policy"
        self.asked = 0

    async def read_block_document_by_name(self, name: str, slug: str) -> Any:
        self.asked += 1
        await asyncio.sleep(0)
        assert (name, slug) == (self.name, "quantum-runtime-policy")
        if isinstance(self.data, Exception):
            raise self.data
        return SimpleNamespace(data=self.data)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A Prefect server that the policy is read from."""
    found = Server()

    async def api() -> Server:
        return found

    monkeypatch.setattr(module, "api", api)
    monkeypatch.setattr(module, "in_run", lambda: True)
    network_loop().forget(module._Known)
    yield found
    network_loop().forget(module._Known)


def in_force(**options: Any) -> Any:
    return network_loop().run(module.policy_in_force(**options))


def test_it_is_read_once_in_a_while(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_force() is None
    server.data = {"rules": [{"tag": "a"}]}
    assert in_force() is None
    assert server.asked == 1
    monkeypatch.setattr(module, "_FRESH", 0.0)
    assert in_force().rules == [PolicyRule(tag="a")]


@pytest.mark.parametrize("where", [replace(NOWHERE, deployment_id="d"), replace(NOWHERE, flow_run_id="r")])
def test_a_tenant_is_read_as_often_as_the_policy(
    server: Server, monkeypatch: pytest.MonkeyPatch, where: RunContext
) -> None:
    tags, asked = frozenset[str](), 0
    error: Exception | None = None

    async def read(where: RunContext) -> Tenant:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return Tenant(tags=tags)

    async def many() -> set[Tenant]:
        return set(await asyncio.gather(*(module.tenant_of(where, "b") for _ in range(9))))

    monkeypatch.setattr(module, "_read_tenant", read)
    assert network_loop().run(many()) == {Tenant(block="b")}
    tags = frozenset({"teaching"})
    assert network_loop().run(many()) == {Tenant(block="b")}
    assert asked == 1
    monkeypatch.setattr(module, "_FRESH", 0.0)
    assert network_loop().run(many()) == {Tenant(tags=tags, block="b")}
    error = ObjectNotFound(Exception())
    assert network_loop().run(many()) == {Tenant(tags=tags, block="b")}, "a deleted deployment is what it was"
    error, asked = RuntimeError("down"), 0
    with pytest.raises(QuantumRuntimeError, match="could not be read"):
        network_loop().run(many())
    assert asked == 1, "none waits for the failures of the others"


@pytest.mark.parametrize("in_run", [True, False])
@pytest.mark.parametrize("buys", [True, False])
def test_calls_at_the_same_time_share_one_reading_of_the_policy(
    server: Server, monkeypatch: pytest.MonkeyPatch, buys: bool, in_run: bool
) -> None:
    """Before: each waited for the failures of those before it, a minute each."""
    monkeypatch.setattr(module, "in_run", lambda: in_run)
    settings = SimpleNamespace(api=SimpleNamespace(url="http://127.0.0.1:1/api"))
    monkeypatch.setattr(module, "get_current_settings", lambda: settings)

    async def many() -> list[Any]:
        return await asyncio.gather(*(module.policy_in_force(buys=buys) for _ in range(9)), return_exceptions=True)

    server.data = RuntimeError("down")
    found = network_loop().run(many())
    assert server.asked == 1
    if in_run:
        assert {type(one) for one in found} == {QuantumRuntimeError}
        assert len({id(one) for one in found}) == 9, "each has an error of its own"
    else:
        assert found == [None] * 9
    network_loop().forget(module._Known)
    server.data, server.asked = {"hosts": ["a.example"]}, 0
    assert [one.hosts for one in network_loop().run(many())] == [["a.example"]] * 9
    assert server.asked == 1


def test_without_prefect_nothing_is_bought(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRESH", 0.0)
    server.data = RuntimeError("down")
    for buys in (True, False):
        with pytest.raises(QuantumRuntimeError, match="Without it nothing is allowed") as caught:
            in_force(buys=buys)
        assert caught.value.advice.may_repeat
    server.data = {"hosts": ["iam.cloud.ibm.com"]}
    known = in_force()
    server.data = RuntimeError("down")
    assert in_force(buys=False) == known  # what was bought can be followed
    with pytest.raises(QuantumRuntimeError):
        in_force()


@pytest.mark.parametrize("known", [None, {"hosts": ["old.example"]}], ids=["a new process", "read before"])
@pytest.mark.parametrize(
    ("data", "hosts"),
    [
        (ObjectNotFound(Exception()), None),
        ({"rules": [{"nonsense": 1}], "hosts": ["new.example"]}, ["new.example"]),
        ({"rules": [{"nonsense": 1}], "hosts": []}, []),
        ({"rules": [{"nonsense": 1}]}, QuantumRuntimePolicy().hosts),
        ({"hosts": ["https://new.example"]}, QuantumRuntimePolicy().hosts),
    ],
    ids=["gone", "wrong rule", "wrong rule, all hosts", "wrong rule, no hosts", "wrong hosts"],
)
def test_under_an_unusable_policy_nothing_is_bought_and_what_was_can_be_stopped(
    server: Server, monkeypatch: pytest.MonkeyPatch, known: Any, data: Any, hosts: list[str] | None
) -> None:
    """A key goes to the hosts that were allowed last; a session on a private endpoint must not burn on."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_POLICY_BLOCK", server.name + "s")
    server.name += "s"
    if known is not None:
        server.data = known
        assert in_force().hosts == known["hosts"]
        hosts = known["hosts"] if hosts is None else hosts
    monkeypatch.setattr(module, "_FRESH", 0.0)
    for server.data in (data, RuntimeError("down")):
        with pytest.raises(QuantumRuntimeError, match="nothing is allowed"):
            in_force()
        assert getattr(in_force(buys=False), "hosts", None) == hosts


@pytest.mark.parametrize("named", ["acme", '"qruntime-policy"', "qruntime_policy", " acme "])
def test_a_policy_that_a_setting_names_must_be_saved(
    server: Server, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_POLICY_BLOCK", named)
    server.name = named.strip()
    with pytest.raises(PolicyRefused, match="POLICY_BLOCK names it") as caught:
        in_force()
    assert server.name in str(caught.value)
    server.data = {"hosts": ["a.example"]}
    assert in_force().hosts == ["a.example"]


@pytest.mark.parametrize("named", ["qruntime-policy", "qruntime-policy "])
def test_without_a_policy_under_the_usual_name_all_is_allowed(
    server: Server, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_POLICY_BLOCK", named)
    assert in_force() is None


def test_a_submission_is_checked_again_before_its_post(server: Server) -> None:
    server.data = {"rules": [{"backends": ["ibm_fez"], "max_execution_time": 30}], "hosts": []}

    class Client:
        connection = Connection(api_key="unit-test-key", crn=CRN, base_url="http://127.0.0.1:9/api/v1")

    async def submit(spec: JobSpec) -> JobSpec | None:
        client: Any = Client()
        async with admission_guard(client, spec, NOWHERE, None) as passing:
            return await passing.before_post("qr-key:1")

    with pytest.raises(PolicyRefused, match="'aer'"):
        network_loop().run(submit(JobSpec("sampler", "aer")))
    sent = network_loop().run(submit(JobSpec("sampler", "ibm_fez")))
    assert sent is not None
    assert sent.max_execution_time == 30
    assert network_loop().run(submit(JobSpec("sampler", "ibm_fez", max_execution_time=20))) is None, "sent as it is"


def test_changed_hosts_are_refused_before_the_token(server: Server) -> None:
    server.data = {}
    block = QuantumRuntimeCredentials(api_key="k", crn=CRN, iam_url="https://evil.example")  # type: ignore[arg-type]
    for ask in (block.verify, lambda: asyncio.run(block.averify())):
        with pytest.raises(PolicyRefused, match=r"iam_url points to 'evil\.example'"):
            ask()


@pytest.mark.parametrize("buys", [True, False])
def test_with_wrong_settings_no_key_goes_anywhere(server: Server, monkeypatch: pytest.MonkeyPatch, buys: bool) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_SESSION_MAX_TTL_SECONDS", "soon")
    with pytest.raises(InvalidInput, match="SESSION_MAX_TTL"):
        in_force(buys=buys)
    assert server.asked == 0
