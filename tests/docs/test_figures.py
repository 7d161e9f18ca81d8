"""The figures in the sentences of the documentation are those of the code."""

from __future__ import annotations

import re

import pytest

from prefect_qruntime.admission import lock_core, share_core
from prefect_qruntime.client import cost_core, provenance
from prefect_qruntime.client.failures import CREATE_PAUSE
from prefect_qruntime.client.inputs.spec import MAX_PAYLOAD_BYTES
from prefect_qruntime.client.submission_core import Ask
from prefect_qruntime.client.waiting.job_list import LARGEST_PAGE
from prefect_qruntime.client.waiting.plan import Deadlines, PollIntervals
from prefect_qruntime.settings import QuantumRuntimeSettings
from tests.docs.blocks import ROOT

WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 9: "nine", 10: "ten", 200: "200"}
POLLS, DEADLINES = PollIntervals(), Deadlines()


def default(setting: str) -> float:
    """A setting's default."""
    return float(QuantumRuntimeSettings.model_fields[setting].default)


def word(number: float) -> str:
    """A number as the sentences spell it."""
    assert number == int(number)
    return WORDS[int(number)]


OUTAGE = word(default("outage_patience_seconds") / 3600)
GRACE = f"{default('submission_grace_seconds'):g} s"
LOOK = word(default("cancel_look_seconds"))
RATE = word(default("create_rate_per_minute"))
ATTEMPTS = word(Ask(lambda generation: "").attempts)
MEGABYTES = f"{MAX_PAYLOAD_BYTES // 1_000_000} MB"

SENTENCES = [
    ("concepts.md", f"a wait continues for up to {OUTAGE} hours without one answer"),
    ("concepts.md", f"A session lives for {word(default('session_max_ttl_seconds') / 3600)} hours unless"),
    ("concepts.md", f"the list is searched for {GRACE}"),
    ("concepts.md", f"sent again, up to {ATTEMPTS} requests in all"),
    ("failures.md", f"searched for the submission's tag for {GRACE}"),
    ("failures.md", f"the request is sent again, up to {ATTEMPTS} requests in all"),
    ("failures.md", f"continues, up to {OUTAGE} hours without one answer"),
    ("failures.md", f"repeated; after {CREATE_PAUSE:g} s on creates"),
    ("failures.md", f"after {DEADLINES.unknown:g} s the newest page of the job list is read"),
    ("failures.md", f"fetched again for {default('result_grace_seconds'):g} s"),
    ("faq.md", f"asks Prefect every {LOOK} seconds"),
    ("how-to/cancel-resume-attach.md", f"asks Prefect every {LOOK} seconds"),
    ("how-to/cancel-resume-attach.md", f"until the flow run is {GRACE} old"),
    ("how-to/session.md", f"`max_ttl` (seconds, default {word(default('session_max_ttl_seconds') / 3600)} hours)"),
    ("how-to/waiting.md", f"up to `outage_patience_seconds` ({OUTAGE} hours)"),
    ("how-to/waiting.md", f"every {POLLS.queued_share * 100:g} % of the time it has spent in the queue"),
    ("how-to/waiting.md", f"at least every {POLLS.longest_queued:g} s."),
    ("how-to/waiting.md", f"every {POLLS.share * 100:g} % of its run time"),
    ("how-to/waiting.md", f"not more often than about every {POLLS.lively:g} s"),
    ("how-to/waiting.md", f"every `progress_seconds` ({word(default('progress_seconds') / 60)} minutes)"),
    ("how-to/scale.md", f"list, up to {word(LARGEST_PAGE)} in a request"),
    ("how-to/large-results.md", f"({default('result_memory_limit_bytes') / 1e6:g} MB)"),
    ("how-to/large-results.md", f"`result_keep_days` ({default('result_keep_days'):g})"),
    ("how-to/sandbox.md", f"{RATE} creates a minute"),
    ("how-to/sandbox.md", f"requests of at most {MEGABYTES}"),
    ("how-to/budget.md", f"accepts {RATE} new jobs a minute"),
    ("how-to/budget.md", f"taken over after {lock_core.SILENCE:g} s"),
    ("how-to/teams.md", f"All teams share {RATE} creates a minute"),
    ("how-to/teams.md", f"goes to the next one after {word(share_core.PATIENCE)} seconds"),
    ("how-to/usage.md", f"The stated rate, {word(round(cost_core.COVERAGE * 10))} in ten,"),
    ("how-to/usage.md", f"It takes {cost_core.ENOUGH} finished jobs"),
    ("how-to/usage.md", f"the service's limit of {word(cost_core.MOST_SECONDS / 3600)} hours"),
    ("../CHANGELOG.md", f"more than {MEGABYTES}"),
]


@pytest.mark.parametrize(("page", "sentence"), SENTENCES)
def test_a_figure_is_that_of_the_code(page: str, sentence: str) -> None:
    text = re.sub(r"\s+", " ", (ROOT / "docs" / page).read_text())
    assert sentence in text


def test_a_result_waits_for_its_provenance_as_long_as_the_page_says() -> None:
    text = re.sub(r"\s+", " ", (ROOT / "docs" / "how-to" / "provenance.md").read_text())
    assert ("waits for it at most a quarter of a second" in text) is (provenance.PATIENCE == 0.25)
