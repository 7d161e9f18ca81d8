"""Starting and stopping, many jobs, the plugin, and what the package may import."""

import ast
import asyncio
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

import prefect_qruntime.sandbox as package
from prefect_qruntime.sandbox import Control, ControlError, Sandbox, serve
from tests.support.sandbox_api import BELL, Api

FOLDER = Path(package.__file__).parent
# Modules that are imported in functions only, where a program is read.
LAZY = {"qasm3_constants.py", "qasm3_reader.py"}
FLOOR_0 = {"models", "errors", "crn", "redact"}


def test_only_loopback():
    for host in ("0.0.0.0", "8.8.8.8", "example.org", ""):
        with pytest.raises(ValueError, match="loopback"):
            Sandbox(host=host)


@pytest.mark.parametrize("options", [{"queue_time": -1}, {"websocket": "x"}, {"clock_scale": 0}, {"create_limit": "5"}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Sandbox(**options)
    with pytest.raises(TypeError):
        Sandbox(colour="red")


def test_start_and_stop_are_quick_and_free_the_port():
    started = time.perf_counter()
    sandbox = Sandbox(physics=False).start()
    with httpx.Client(trust_env=False) as client:  # A connection kept open must not hold up the stop.
        assert client.get(f"{sandbox.base_url()}/versions").status_code == 200
        sandbox.stop()
        sandbox.stop()
        assert time.perf_counter() - started < 200  # a server that waits for clients waits for ever
        with pytest.raises(httpx.TransportError):
            client.get(f"{sandbox.base_url()}/versions")
    with pytest.raises(RuntimeError, match="once"):
        sandbox.start()
    port = int(sandbox.url.rsplit(":", 1)[1])
    with Sandbox(port=port, physics=False) as again:
        assert again.url == sandbox.url
        with pytest.raises(OSError, match=r"in use"):
            Sandbox(port=port).start()


def test_control_works_after_the_stop():
    with Sandbox(physics=False) as sandbox:
        api = Api(sandbox)
        job_id = api.job_id()
        api.http.close()
    assert sandbox.control.job(job_id)["id"] == job_id
    assert [one["path"] for one in sandbox.control.journal("POST")] == ["/identity/token", "/jobs"]
    with pytest.raises(ControlError):
        sandbox.control.job("x")


async def test_async_use_and_sockets_that_are_open_at_the_stop():
    from websockets.asyncio.client import connect

    async with Sandbox(physics=False) as sandbox:
        sandbox.control.hold()
        api = Api(sandbox, "legacy")
        job_id = api.job_id(params={"circuits": [BELL]})
        api.http.close()
        url = f"{sandbox.base_url('legacy').replace('http', 'ws', 1)}/stream/jobs/{job_id}"
        connection = await connect(url, additional_headers=api.headers, proxy=None)
        assert job_id in await connection.recv()
    started = time.perf_counter()
    await asyncio.wait_for(connection.wait_closed(), 20)
    assert time.perf_counter() - started < 20


def test_connection_and_credentials(qruntime_sandbox):
    fields = qruntime_sandbox.connection()
    assert set(fields) == {"api_key", "crn", "dialect", "base_url", "iam_url"}
    assert fields["base_url"] == f"{qruntime_sandbox.url}/api/v1"
    assert qruntime_sandbox.connection("legacy")["base_url"] == qruntime_sandbox.url
    with pytest.raises(ValueError, match="dialect"):
        qruntime_sandbox.base_url("martian")
    keys, crns = zip(*qruntime_sandbox.instances, strict=True)
    assert (len(set(keys)), len(set(crns))) == (3, 2)
    assert crns[0] == crns[1] == qruntime_sandbox.crn


def test_fixture_credentials_fit_the_sandbox(qruntime_sandbox, qruntime_credentials):
    assert qruntime_credentials.crn == qruntime_sandbox.crn
    assert qruntime_credentials.api_key.get_secret_value() == qruntime_sandbox.api_key
    assert qruntime_credentials.dialect == "cloud"


def test_given_key_and_crn_stay():
    crn = "crn:v1:bluemix:public:quantum-computing:us-east:a/0:1-2-3::"
    with Sandbox(api_key="mine", crn=crn, physics=False) as sandbox:
        sandbox.reset()
        assert sandbox.instances[0] == ("mine", crn)


async def test_serve_tells_when_it_is_up_and_stops_when_cancelled():
    up: list[Sandbox] = []
    started = asyncio.Event()

    def on_start(sandbox: Sandbox) -> None:
        up.append(sandbox)
        started.set()

    task = asyncio.create_task(serve(port=0, on_start=on_start, physics=False))
    await asyncio.wait_for(started.wait(), 60)
    assert await asyncio.to_thread(Control.connect(up[0].url).iam_calls) == 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(httpx.ConnectError):
        await asyncio.to_thread(httpx.get, up[0].url, trust_env=False)


def test_run_forever_ends_on_sigterm_and_prints_nothing():
    code = (
        "from prefect_qruntime.sandbox import run_forever\n"
        "run_forever(port=0, physics=False, on_start=lambda s: print(s.url, flush=True))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        assert Control.connect(url).jobs() == []
        process.terminate()
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "", "")


HEAVY = "{'qiskit', 'qiskit_aer', 'numpy', 'starlette', 'uvicorn', 'httpx', 'prefect'}"


@pytest.mark.parametrize(
    ("heavy", "use"),
    [
        (HEAVY, "import prefect_qruntime.sandbox, prefect_qruntime.sandbox.pytest_plugin"),
        (
            "{'qiskit', 'qiskit_aer', 'numpy', 'prefect'}",
            "from prefect_qruntime.sandbox import Sandbox\nwith Sandbox(physics=False): pass",
        ),
    ],
)
def test_imports_are_cheap(heavy, use):
    """Nothing heavy is imported beyond what the package itself imports."""
    code = f"import sys, prefect_qruntime\nbefore = set(sys.modules)\n{use}\n"
    code += f"print(sorted({heavy} & (set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.name)
def test_floors(file):
    """The sandbox imports floor 0 only, never prefect, and qiskit only inside functions."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module or ""]
        for name in names:
            top = name.split(".")[0]
            assert top != "prefect", f"{file.name} imports {name}"
            if name.rpartition(".")[2] + ".py" in LAZY and file.name not in LAZY:
                assert node not in tree.body, f"{file.name} imports {name} at its top"
            if top == "prefect_qruntime":
                assert name.startswith("prefect_qruntime.sandbox") or name.split(".")[1] in FLOOR_0
            if top in ("qiskit", "qiskit_aer", "numpy") and file.name not in LAZY:
                assert node not in tree.body, f"{file.name} imports {name} at its top"
    assert len(file.read_text().splitlines()) <= 420


def test_many_jobs_at_once():
    with Sandbox(physics=False, queue_time=0.2, run_time=0.2) as sandbox:
        api = Api(sandbox)
        ids = [api.job_id(tags=["many", f"n{n}"]) for n in range(500)]
        for job_id in ids:
            sandbox.control.wait_job(job_id)
        jobs = sandbox.control.jobs()
        assert {job["status"] for job in jobs} == {"Completed"}
        found = []
        while True:
            page = api("GET", "/jobs", params={"tags": "many", "offset": len(found), "limit": 200}).json()
            found += page["jobs"]
            if len(found) >= page["count"]:
                break
        assert [job["id"] for job in found] == ids[::-1]
        api.http.close()


def test_two_sandboxes_do_not_mix():
    with Sandbox(physics=False) as one, Sandbox(physics=False) as two:
        assert one.crn != two.crn
        first, second = Api(one), Api(two)
        first.job_id()
        assert second("GET", "/jobs").json()["count"] == 0
        headers = {"Authorization": first.headers["Authorization"]}
        assert second("GET", "/jobs", headers=headers).status_code == 401
        first.http.close()
        second.http.close()


def test_control_from_many_threads(fast):
    problems: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                fast.control.jobs()
                fast.control.set_usage(consumed=1)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_port_is_bound_to_loopback_only(qruntime_sandbox):
    port = int(qruntime_sandbox.url.rsplit(":", 1)[1])
    with socket.create_server(("127.0.0.2", port)):
        pass  # Possible only if the server does not listen on every address.


def test_the_server_never_imports_the_simulator():
    """It would take a second, and a program that imports qiskit meanwhile might get a half-imported one."""
    code = (
        "import sys\n"
        "from prefect_qruntime.sandbox import Sandbox\n"
        "from tests.support.sandbox_api import Api\n"
        "with Sandbox(queue_time=0, run_time=0) as sandbox:\n"
        "    assert Api(sandbox).run()['results']\n"
        "heavy = [name for name in sys.modules if name.split('.')[0] in ('qiskit', 'qiskit_aer', 'numpy')]\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, cwd=FOLDER.parents[1])
