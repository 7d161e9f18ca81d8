import time

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.waiting.plan import Deadlines
from prefect_qruntime.sandbox import Sandbox

with Sandbox(seed=1, queue_time=0.05, run_time=0.05) as sb:
    for d in ("cloud", "legacy"):
        c = QuantumRuntimeClient(Connection(**sb.connection(d)))
        t = time.monotonic()
        try:
            c.run(c.wait("d1abc", deadlines=Deadlines(total=70)))
        except Exception as e:
            print(type(e).__name__, round(time.monotonic() - t, 1), e)
        t = time.monotonic()
        try:
            c.run(c.result("d1abc"))
        except Exception as e:
            print(type(e).__name__, round(time.monotonic() - t, 1), e)
        for n in range(3):
            c.run(c.cancel("d1abc")) if False else None
