"""The floor: plain httpx, one connection pool, one token, a look each half second, no care for anything."""

from __future__ import annotations

import asyncio

from benchmarks.lab import BACKEND, BELL, Lab
from benchmarks.peers.shared import OnRunner

PACE = 0.5  # seconds between looks, as both other peers


class Bare(OnRunner):
    """Raw calls."""

    no_session = "raw calls keep one pace everywhere"

    def load(self) -> None:
        """Import httpx."""
        import httpx

        self._client = httpx.AsyncClient
        self.runner = asyncio.Runner()

    def open(self) -> None:
        """Get a token and open the pool."""

        async def start() -> None:
            self.http = self._client(base_url=f"{self.lab.base_url}/", timeout=60, trust_env=False)
            form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": self.lab.api_key}
            answer = await self.http.post(f"{self.lab.url}/identity/token", data=form)
            self.http.headers.update(
                {
                    "Authorization": f"Bearer {answer.json()['access_token']}",
                    "Service-CRN": self.lab.crn,
                    "IBM-API-Version": "2026-04-15",
                }
            )

        self.runner.run(start())

    async def _submit(self) -> str:
        params = {"pubs": [[BELL, None, 10]], "version": 2}
        body = {"program_id": "sampler", "backend": BACKEND, "params": params}
        answer = await self.http.post("jobs", json=body)
        return str(answer.raise_for_status().json()["id"])

    async def _wait(self, job: str) -> None:
        while True:
            answer = await self.http.get(f"jobs/{job}", params={"exclude_params": "true"})
            if answer.raise_for_status().json()["status"] == "Completed":
                return
            await asyncio.sleep(PACE)

    async def _fetch(self, job: str) -> int:
        answer = await self.http.get(f"jobs/{job}/results")
        return len(answer.raise_for_status().json()["results"][0]["data"]["meas"]["samples"]) // 10

    def close(self) -> None:
        """Close the pool and the loop."""
        self.runner.run(self.http.aclose())
        self.runner.close()


def make(name: str, lab: Lab) -> Bare:
    """Make the peer."""
    return Bare(lab)
