"""The doctor: each wrong setting has its own message and its own cure, and hides no other."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import prefect
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.filesystems import LocalFileSystem
from prefect.settings import PREFECT_API_URL, PREFECT_DEFAULT_RESULT_STORAGE_BLOCK, temporary_settings

from prefect_qruntime import Budget, QuantumRuntimeCredentials, QuantumRuntimeJob, QuantumRuntimePolicy
from prefect_qruntime.admission.rate_limit import set_up
from prefect_qruntime.cli.operations import doctor
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.submission import Intent
from prefect_qruntime.diagnostics.fields import Finding
from prefect_qruntime.diagnostics.prefect_server import check_budget
from prefect_qruntime.operations.doctor import check_block, run_doctor
from prefect_qruntime.sandbox import Sandbox
from tests.support.command_line import command
from tests.support.flow_runs import BACKEND, FLIP
from tests.support.loopback import Authority, answering, hanging_up, passing_on, serving, silent, tunnelling
from tests.support.prefect_calls import asked
from tests.support.prefect_server import PrefectServer

pytestmark = pytest.mark.server
ROOT = Path(__file__).resolve().parent.parent.parent
PASSWORD = "proxy-password-0123456789"


@dataclass
class World:
    """The sandbox and what stands around it. Called, it gives the data of a block that works, but for `changes`."""

    sandbox: Sandbox
    ports: dict[str, int]
    files: dict[str, str] = field(default_factory=dict)

    def __call__(self, dialect: str = "cloud", **changes: Any) -> dict[str, Any]:
        # A name of its own gives each check a connection of its own.
        own = {"application": f"doctor-{uuid4().hex[:8]}"}
        return {**self.sandbox.connection(dialect), **own, **changes}

    def tls(self, server: str, ca: str | None = None, host: str = "localhost") -> dict[str, Any]:
        """As called, through one of the TLS fronts."""
        root = f"https://{host}:{self.ports[server]}"
        return self(base_url=f"{root}/api/v1", iam_url=root, ca_file=self.files[ca] if ca else None)

    def at(self, server: str) -> str:
        return f"http://127.0.0.1:{self.ports[server]}"

    def fault(self, method: str, path: str, **fields: Any) -> None:
        self.sandbox.control.add_fault(method, path, times=None, **fields)


@pytest.fixture(scope="module")
def around(running_sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("tls")
    port = int(running_sandbox.url.rsplit(":", 1)[1])
    ours, other = Authority.make("our ca"), Authority.make("another ca")
    good, leaf = ours.tls(folder, "localhost")
    (folder / "text.pem").write_text("no certificate\n")
    files = {"ours": ours.write(folder), "other": other.write(folder), "leaf": leaf, "text": str(folder / "text.pem")}
    servers = {
        "tls": (passing_on(port), good),
        "expired": (passing_on(port), ours.tls(folder, "localhost", expired=True)[0]),
        "proxy": (tunnelling, None),
        "proxy asks": (answering("407 Proxy Authentication Required"), None),
        "proxy refuses": (answering("403 Forbidden"), None),
        "page": (answering("200 OK", "<html>hello</html>"), None),
        "redirect": (answering("302 Found", Location="https://example.invalid/"), None),
        "hangs up": (hanging_up, None),
        "silent": (silent, None),
    }
    with ExitStack() as stack, socket.socket() as closed:
        ports = {name: stack.enter_context(serving(*how)) for name, how in servers.items()}
        closed.bind(("127.0.0.1", 0))  # bound, never listening: whoever connects is refused
        yield World(running_sandbox, {**ports, "closed": closed.getsockname()[1]}, files)


@pytest.fixture
def world(around: World, sandbox: Sandbox) -> World:
    return around


def checked(data: dict[str, Any]) -> list[Finding]:
    async def check() -> list[Finding]:
        imposed, _ = await check_budget()
        return await check_block(data, imposed)

    return network_loop().run(check())


def wrong(data: dict[str, Any]) -> list[Finding]:
    return [finding for finding in checked(data) if finding.level == "problem"]


def of_others(w: World) -> dict[str, Any]:
    return w(crn=w.sandbox.instances[2][1])


def unknown_instance(w: World) -> dict[str, Any]:
    return w(crn=w.sandbox.crn.replace(w.sandbox.crn.split(":")[7], "00000000-0000-4000-8000-000000000000"))


def locked_key(w: World) -> dict[str, Any]:
    body = {"errorCode": "BXNIM0462E", "errorMessage": "The API key is locked."}
    w.fault("POST", "/identity/token", status=400, body=body)
    return w()


def ill(method: str, path: str) -> Callable[[World], dict[str, Any]]:
    def make(w: World) -> dict[str, Any]:
        w.fault(method, path, status=503)
        return w()

    return make


def not_allowed(path: str) -> Callable[[World], dict[str, Any]]:
    def make(w: World) -> dict[str, Any]:
        # Without a token it is refused as ever, so only what comes with one meets the fault.
        w.sandbox.control.add_fault("GET", path, status=403, skip=1 if path == "/backends" else 0, times=None)
        return w()

    return make


def token_with(w: World, **changes: Any) -> dict[str, Any]:
    """IAM's real answer with changes."""
    form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": w.sandbox.api_key}
    body = httpx.post(f"{w.sandbox.iam_url}/identity/token", data=form, trust_env=False).json()
    w.fault("POST", "/identity/token", status=200, body={**body, **changes})
    return w()


def slow_clock(w: World) -> dict[str, Any]:
    return token_with(w, expiration=int(time.time()) + 3600 + 300)


def fast_clock(w: World) -> dict[str, Any]:
    stamp = {"date": formatdate(time.time() - 400, usegmt=True)}
    w.fault("GET", "/backends", status=401, body={"errors": [{"code": 1200, "message": "no"}]}, headers=stamp)
    return {**w(), "api_key": "no-key-0123456789"}


def refused_token(w: World) -> dict[str, Any]:
    return token_with(w, access_token="a-token-of-somebody-else-0123456789")


def nothing_left(w: World) -> dict[str, Any]:
    w.sandbox.control.set_usage(consumed=100, limit=100)
    return w()


def no_backends(w: World) -> dict[str, Any]:
    w.fault("GET", "/backends", status=200, body={"devices": []})
    return w()


def long_names(w: World) -> str:
    return w.sandbox.base_url() + "/jobs"


# What is wrong: how to make it, the check that finds it, words of the message, words of the cure.
CASES: dict[str, tuple[Callable[[World], dict[str, Any]], str, str, str]] = {
    "key unknown": (lambda w: w(api_key="not-the-key-0123456789"), "api_key", "not known to", "new key"),
    "key locked": (locked_key, "api_key", "refused .*locked", "locked or expired"),
    "key empty": (lambda w: w(api_key=" "), "api_key", "is empty", "Enter an IBM Cloud API key"),
    "key with a line break": (lambda w: w(api_key="half-a-key\nhalf-a-key"), "api_key", "whitespace", "one line"),
    "key masked": (lambda w: w(api_key="**********"), "api_key", "mask of asterisks", "block's name"),
    "crn malformed": (lambda w: w(crn="crn:v1:nothing"), "crn", "not the CRN", "instance's page"),
    "crn unknown": (unknown_instance, "crn", "knows no instance", "Copy the CRN again"),
    "crn of others": (of_others, "crn", "no access to the instance", "key's own account"),
    "cloud block, legacy host": (lambda w: w(base_url=w.sandbox.url), "dialect", "speaks the legacy", "to legacy"),
    "legacy block, cloud host": (
        lambda w: w("legacy", base_url=w.sandbox.base_url()),
        "dialect",
        "speaks the cloud",
        "to cloud",
    ),
    "base_url without version": (
        lambda w: w(base_url=w.sandbox.url + "/api"),
        "base_url",
        "/api has no /backends",
        r"Set base_url to http://\S+/api/v1\.",
    ),
    "base_url of an endpoint": (
        lambda w: w(base_url=long_names(w)),
        "base_url",
        "ends with the endpoint /jobs",
        r"^Set base_url to http://\S+/api/v1\.$",
    ),
    "base_url a page": (lambda w: w(base_url=w.at("page")), "base_url", "with a page", "or leave it empty"),
    "base_url redirects": (lambda w: w(base_url=w.at("redirect")), "base_url", "redirects", "or leave it empty"),
    "base_url closed": (lambda w: w(base_url=w.at("closed")), "base_url", "refuses connections", "port of base_url"),
    "base_url hangs up": (
        lambda w: w(base_url=w.at("hangs up")),
        "base_url",
        "without an answer",
        "closes the connection",
    ),
    "base_url silent": (
        lambda w: w(base_url=w.at("silent"), request_timeout=0.5),
        "base_url",
        "does not answer",
        "firewall",
    ),
    "base_url without TLS": (
        lambda w: w(base_url=w.sandbox.base_url().replace("http:", "https:")),
        "base_url",
        "not speak TLS",
        "scheme and port",
    ),
    "base_url unknown": (
        lambda w: w(base_url="https://quantum.example.invalid/api/v1"),
        "base_url",
        "not known on this machine",
        "typing error",
    ),
    "base_url http": (
        lambda w: w(base_url="http://quantum.example/api/v1"),
        "base_url",
        "plain http:// is refused",
        "Correct base_url",
    ),
    "service ill": (ill("GET", "/backends"), "base_url", "server error: HTTP 503", "status page"),
    "iam_url wrong": (
        lambda w: w(iam_url=w.sandbox.url + "/nowhere"),
        "iam_url",
        "/nowhere is not IAM",
        r"Set iam_url to http://[\d.:]+\.$",
    ),
    "iam_url of the endpoint": (
        lambda w: w(iam_url=w.sandbox.url + "/identity/token"),
        "iam_url",
        "contains a part of the endpoint",
        r"^Set iam_url to http://[\d.:]+\.$",
    ),
    "iam_url a page": (lambda w: w(iam_url=w.at("page")), "iam_url", "is not IAM: .*HTTP 200", "iam.cloud.ibm.com"),
    "iam_url closed": (lambda w: w(iam_url=w.at("closed")), "iam_url", "refuses connections", "port of iam_url"),
    "iam ill": (ill("POST", "/identity/token"), "iam_url", "server error: HTTP 503", "correct iam_url"),
    "proxy malformed": (lambda w: w(proxy=f"user:{PASSWORD}@host:1"), "proxy", "not the address", "http://user:pass"),
    "proxy unreachable": (
        lambda w: w(proxy=f"http://me:{PASSWORD}@127.0.0.1:{w.ports['closed']}"),
        "proxy",
        r"127.0.0.1:\d+ cannot be reached",
        "Correct proxy",
    ),
    "proxy asks": (
        lambda w: {**w.tls("tls", "ours"), "proxy": w.at("proxy asks")},
        "proxy",
        "asks for a user",
        "Set them",
    ),
    "proxy asks again": (
        lambda w: {**w.tls("tls", "ours"), "proxy": w.at("proxy asks").replace("//", f"//me:{PASSWORD}@")},
        "proxy",
        "refuses the user and the password",
        "%XX",
    ),
    "proxy refuses": (
        lambda w: {**w.tls("tls", "ours"), "proxy": w.at("proxy refuses")},
        "proxy",
        "does not let",
        "to be allowed",
    ),
    "ca_file missing": (lambda w: w(ca_file="/nowhere/ca.pem"), "ca_file", "no file /nowhere/ca.pem", "Put the CA"),
    "ca_file a text": (lambda w: w(ca_file=w.files["text"]), "ca_file", "holds no certificate", "BEGIN CERTIFICATE"),
    "ca_file of another CA": (lambda w: w.tls("tls", "other"), "ca_file", "not signed by a CA in", "Add the CA"),
    "ca_file needed": (lambda w: w.tls("tls"), "ca_file", "does not know", "Set ca_file"),
    "certificate expired": (lambda w: w.tls("expired", "ours"), "base_url", "not valid at", "clock"),
    "certificate of another name": (
        lambda w: w.tls("tls", "ours", host="127.0.0.1"),
        "base_url",
        "for another name",
        "Use the name in the certificate",
    ),
    "clock slow": (slow_clock, "clock", r"clock is (29\d|300) s slow", "NTP"),
    "clock fast": (fast_clock, "clock", r"clock is (399|40\d) s fast", "NTP"),
    "token refused": (refused_token, "access", "IAM gave a token", "same account"),
    "may not list backends": (not_allowed("/backends"), "rights", "not list backends", "device.read"),
    "may not read jobs": (not_allowed("/jobs"), "rights", "not read jobs", "job.read"),
    "api_version too old": (
        lambda w: w(api_version="2020-01-01"),
        "api_version",
        "not one that the",
        "Set api_version",
    ),
    "timeout no number": (lambda w: w(request_timeout="soon"), "request_timeout", "cannot be a str", "Correct"),
    "dialect unknown": (lambda w: {**w(), "dialect": "grpc"}, "dialect", "'cloud' or 'legacy'", "Correct dialect"),
    "no time left": (nothing_left, "usage", "no QPU time left", "Raise the instance's limit"),
    "no backends": (no_backends, "backends", "has no backends", "Ask its owner"),
}


@pytest.fixture(autouse=True)
def _no_such_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names in `.invalid` exist nowhere; do not ask this machine's resolver, which may take its time."""
    real = socket.getaddrinfo

    def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(host, str | bytes) and b".invalid" in (host if isinstance(host, bytes) else host.encode()):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_setting_is_found_and_the_cure_is_told(world: World, name: str) -> None:
    make, check, finding, fix = CASES[name]
    data = make(world)
    found = wrong(data)
    fitting = [one for one in found if one.check == check and re.search(finding, one.finding)]
    assert fitting, found
    assert re.search(fix, fitting[0].fix), fitting[0].fix
    assert len(found) == (2 if name == "clock fast" else 1), found
    for secret in (data["api_key"].strip(), PASSWORD):
        assert len(secret) < 6 or secret not in "".join(map(str, found))


def test_no_two_wrong_settings_are_told_alike(world: World) -> None:
    told: dict[tuple[str, ...], str] = {}
    for name, (make, check, finding, _) in CASES.items():
        world.sandbox.reset()
        found = next(one for one in wrong(make(world)) if one.check == check and re.search(finding, one.finding))
        # Addresses and numbers are another's in each case, so they do not count.
        words = tuple(re.sub(r"https?://\S+|\d+", "", text) for text in (check, found.finding, found.fix))
        assert words not in told, f"{name} and {told.get(words)} are told alike: {found}"
        told[words] = name


@pytest.mark.parametrize("dialect", ["cloud", "legacy"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_right_block_has_no_problem_with_or_without_slashes(world: World, dialect: str, slash: str) -> None:
    data = world(dialect)
    data |= {"base_url": data["base_url"] + slash, "iam_url": data["iam_url"] + slash}
    found = checked(data)
    assert {finding.level for finding in found} == {"ok"}, found
    assert {"settings", "limits", "api_key", "backends", "usage", "websocket"} == {finding.check for finding in found}


def test_a_right_ca_file_and_a_right_proxy(world: World) -> None:
    assert wrong(world.tls("tls", "ours")) == []
    assert wrong({**world.tls("tls", "ours"), "proxy": world.at("proxy")}) == []
    posts = world.sandbox.control.journal("POST", "/identity/token")
    assert len(posts) == 2


def test_a_gateway_that_hides_itself_from_strangers(world: World) -> None:
    """Without a token it answers 404; with one it is the service."""
    world.sandbox.control.add_fault("GET", "/backends", status=404, times=1)
    found = checked(world())
    assert [finding for finding in found if finding.level == "problem"] == []
    assert "backends" in {finding.check for finding in found}


def test_only_the_servers_own_certificate_as_ca_file_is_a_hint(world: World) -> None:
    found = [finding for finding in checked(world(ca_file=world.files["leaf"])) if finding.check == "ca_file"]
    assert [finding.level for finding in found] == ["hint"]
    assert "only a server's own" in found[0].finding


def test_one_wrong_setting_hides_no_other(world: World) -> None:
    found = wrong(world(api_key="a key", crn="x", iam_url=world.sandbox.url + "/nowhere", base_url=long_names(world)))
    assert {finding.check for finding in found} == {"api_key", "crn", "iam_url", "base_url"}
    assert [f.check for f in wrong(world(crn="x", api_key="not-the-key-0123456789"))] == ["crn", "api_key"]


def test_usage_that_may_not_be_read_is_a_hint(world: World) -> None:
    world.fault("GET", "/instances/usage", status=403)
    found = {finding.check: finding for finding in checked(world())}
    assert found["rights"].level == "hint"
    assert "quantum-computing.instance-usage.read" in found["rights"].fix


def test_the_websocket_of_a_legacy_host(world: World) -> None:
    client = world.sandbox.credentials("legacy").get_client()
    client.run(client.submit(Intent(spec=make_spec([FLIP], backend=BACKEND), key_tag=lambda _: "by-hand")))
    said = {finding.check: finding for finding in checked(world("legacy"))}["websocket"]
    assert (said.level, "offers it" in said.finding) == ("ok", True)
    world.sandbox.control.set_option("websocket", False)
    said = {finding.check: finding for finding in checked(world("legacy"))}["websocket"]
    assert (said.level, "no websocket (HTTP 404): waiting polls" in said.finding) == ("hint", True)


def test_create_limits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def limits() -> Finding:
        return next(finding for finding in checked(world()) if finding.check == "limits")

    assert limits().level == "ok"
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PER_MINUTE", "5")
    assert (limits().level, "prefect-qruntime setup" in limits().fix) == ("hint", True)
    network_loop().run(set_up(world.sandbox.crn, per_minute=5, period=60.0))
    assert (limits().level, "at most 5 jobs a minute" in limits().finding) == ("ok", True)
    network_loop().run(set_up(world.sandbox.crn, per_minute=7, period=60.0))
    assert (limits().level, "7 creates a minute" in limits().finding) == ("hint", True)


def prefects_side(name: str) -> list[Finding]:
    return [finding for finding in run_doctor([]).findings if finding.block is None and finding.check == name]


def test_a_prefect_server_that_cannot_be_reached(world: World) -> None:
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{world.ports['closed']}/api"}):
        report = run_doctor()
    assert not report.ok
    found = {finding.check: finding for finding in report.findings}
    assert found["server"].level == "problem"
    assert "cannot be reached" in found["server"].finding
    assert "prefect server start" in found["server"].fix
    assert found["session ttl"].level == "ok"
    assert found["blocks"].level == "hint"


@pytest.mark.parametrize(
    ("version", "level", "words"), [("4.0.0", "problem", "cannot work with"), ("3.999.0", "hint", "is older than")]
)
def test_versions_that_do_not_fit(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch, version: str, level: str, words: str
) -> None:
    monkeypatch.setattr(prefect, "__version__", version)
    (found,) = prefects_side("versions")
    assert (found.level, words in found.finding) == (level, True)
    assert found.fix


def test_a_block_type_that_is_not_registered(prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (QuantumRuntimeCredentials, Budget, QuantumRuntimeJob, QuantumRuntimePolicy):
        kind.register_type_and_schema()
    assert prefects_side("block type")[0].level == "ok"
    for kind in (Budget, QuantumRuntimeJob):
        with monkeypatch.context() as old:
            old.setattr(kind, "_calculate_schema_checksum", lambda: "sha256:0")
            (found,) = prefects_side("block type")
            assert (found.level, str(kind._block_type_name) in found.finding) == ("hint", True)
            old.setattr(kind, "_block_type_slug", f"not-registered-{uuid4().hex}")
            (found,) = prefects_side("block type")
            assert (found.level, "does not know the block type" in found.finding) == ("hint", True)
            assert prefects_side("job blocks")[0].level != "problem"
    monkeypatch.setattr(QuantumRuntimeCredentials, "_calculate_schema_checksum", lambda: "sha256:0")
    assert prefects_side("block type")[0].level == "hint"
    monkeypatch.setattr(QuantumRuntimeCredentials, "_block_type_slug", f"not-registered-{uuid4().hex}")
    (found,) = prefects_side("block type")
    assert found.level == "problem"
    assert "prefect block register" in found.fix
    report = run_doctor()
    assert "No Quantum Runtime Credentials block is saved." in [finding.finding for finding in report.findings]


def test_hints_about_results_sessions_and_work_pools(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (results,) = prefects_side("results")
    assert (results.level, "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK" in results.fix) == ("hint", True)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_SESSION_MAX_TTL_SECONDS", "90000")
    (ttl,) = prefects_side("session ttl")
    assert (ttl.level, "90000 s" in ttl.finding) == ("hint", True)
    pools = asked(lambda client: client.read_work_pools())
    (pool,) = prefects_side("work pool")
    assert pool.level == ("ok" if pools else "hint")


@pytest.mark.parametrize(
    ("of", "change", "says", "command"),
    [
        ("pool", {"is_paused": True}, "is paused", "`prefect work-pool resume {pool}`"),
        ("pool", {"concurrency_limit": 0}, "has the limit 0", "`prefect work-pool clear-concurrency-limit {pool}`"),
        ("queue", {"is_paused": True}, "is paused", "`prefect work-queue resume 'a queue' --pool {pool}`"),
        ("queue", {"concurrency_limit": 0}, "has the limit 0", "clear-concurrency-limit 'a queue' --pool {pool}`"),
    ],
)
def test_a_work_pool_or_queue_from_which_no_flow_run_starts_is_named_with_its_deployments(
    prefect_server: PrefectServer, of: str, change: dict[str, Any], says: str, command: str
) -> None:
    pool = f"doctor-{uuid4().hex[:8]}"
    named = f"The work {of} {pool if of == 'pool' else f'a queue of the pool {pool}'}"

    async def change_it(client: PrefectClient) -> None:
        if of == "pool":
            await client.update_work_pool(pool, WorkPoolUpdate(**change))
        else:
            (queue,) = [one for one in await client.read_work_queues(pool) if one.name == "a queue"]
            await client.update_work_queue(queue.id, **change)

    async def deploy(client: PrefectClient) -> None:
        flow_id = await client.create_flow_from_name("doctored")
        queue = "a queue" if of == "queue" else None
        for number in range(7):
            await client.create_deployment(flow_id, f"{pool}-{number}", work_pool_name=pool, work_queue_name=queue)

    asked(lambda client: client.create_work_pool(WorkPoolCreate(name=pool, type="process")))
    try:
        asked(lambda client: client.create_work_queue("a queue", work_pool_name=pool))
        asked(change_it)
        (found,) = prefects_side("work pool")
        assert named not in found.finding, "nothing uses it"
        asked(deploy)
        (found,) = prefects_side("work pool")
        assert found.level == "hint"
        first = ", ".join(f"{pool}-{number}" for number in range(5))
        assert f"{named} {says}, so no worker starts the flow runs of {first} and 2 more." in found.finding
        assert command.format(pool=pool) in found.fix
    finally:
        asked(lambda client: client.delete_work_pool(pool))


@pytest.mark.parametrize(
    "named", ["doctor-results", "local-file-system/doctor-results", "no-such-type/doctor-results", "/"]
)
def test_a_block_for_results_that_is_not_saved_is_a_problem_until_it_is(
    prefect_server: PrefectServer, named: str
) -> None:
    with temporary_settings({PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: named}):
        (found,) = prefects_side("results")
        assert (found.level, repr(named) in found.finding) == ("problem", True)
    LocalFileSystem(basepath="results").save("doctor-results", overwrite=True)
    with temporary_settings({PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: "local-file-system/doctor-results"}):
        (found,) = prefects_side("results")
        assert (found.level, found.finding) == ("ok", "Kept in local-file-system/doctor-results")
    LocalFileSystem.delete("doctor-results")


def test_a_setting_of_ours_that_is_no_number(prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_SESSION_MAX_TTL_SECONDS", "long")
    (found,) = prefects_side("settings")
    assert found.level == "problem"
    assert "PREFECT_INTEGRATIONS_QRUNTIME_SESSION_MAX_TTL_SECONDS" in found.finding


@pytest.mark.parametrize(("setting", "check"), [("BUDGET_BLOCK", "budget"), ("POLICY_BLOCK", "policy")])
def test_a_setting_that_names_no_block_is_a_problem(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch, setting: str, check: str
) -> None:
    monkeypatch.setenv(f"PREFECT_INTEGRATIONS_QRUNTIME_{setting}", "not-saved")
    (found,) = prefects_side(check)
    assert found.level == "problem"
    assert "named 'not-saved'" in found.finding
    assert setting in found.finding + found.fix


def test_an_imposed_budget_is_named(prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prefects_side("budget") == []
    Budget(max_jobs_per_run=9).save("doctor-budget", overwrite=True)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_BUDGET_BLOCK", "doctor-budget")
    (found,) = prefects_side("budget")
    assert (found.level, found.finding) == ("ok", "doctor-budget applies to every submission")


@pytest.mark.parametrize(("keeps", "limit", "told"), [(60, None, True), (60, 600, False), (None, None, False)])
def test_what_an_imposed_budget_cannot_keep_is_a_hint(
    world: World, monkeypatch: pytest.MonkeyPatch, keeps: float | None, limit: float | None, told: bool
) -> None:
    Budget(max_jobs_per_run=9, min_remaining_seconds=keeps).save("doctor-floor", overwrite=True)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_BUDGET_BLOCK", "doctor-floor")
    world.sandbox.control.set_usage(limit=limit)
    found = [one for one in checked(world()) if one.check == "budget"]
    assert [one.level for one in found] == ["hint"] * told
    assert all("min_remaining_seconds" in one.finding and "doctor-floor" in one.finding for one in found)


def test_a_wrong_setting_is_no_problem_of_a_block(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    QuantumRuntimeCredentials(**world()).save("doctor-setting", overwrite=True)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PER_MINUTE", "abc")
    found = run_doctor(["doctor-setting"]).findings
    assert [one.check for one in found if one.level == "problem"] == ["settings"]


def test_the_command_line(
    world: World, prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = QuantumRuntimeCredentials(**world()), QuantumRuntimeCredentials(**world(api_key="no-key-0123456789"))
    good.save("doctor-good", overwrite=True)
    bad.save("doctor-bad", overwrite=True)
    blocks = [word for name in ("good", "bad") for word in ("--block", f"doctor-{name}")]
    told = command(prefect_server.env, "doctor", *blocks, "--json")
    assert told.returncode == 1, told.stderr
    rows = json.loads(told.stdout)
    assert all(set(row) == {"block", "check", "level", "finding", "fix"} for row in rows)
    problems = [(row["block"], row["check"]) for row in rows if row["level"] == "problem"]
    assert problems == [("doctor-bad", "api_key")]

    monkeypatch.setenv("COLUMNS", "80")
    assert doctor(block=["doctor-good"]) == 0
    shown = capsys.readouterr().out
    assert "Block doctor-good" in shown
    assert "0 problems, " in shown
    assert max(map(len, shown.splitlines())) <= 80
    for secret in (world.sandbox.api_key, "no-key-0123456789"):
        assert secret not in told.stdout + told.stderr + shown
