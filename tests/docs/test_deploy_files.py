"""The files in deploy/: a worker's image and its pod, without a secret and with time to end well."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from prefect.cli._app import _app as prefect_app

from prefect_qruntime.observability import run_page
from tests.docs.blocks import ROOT

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
POD = yaml.safe_load((ROOT / "deploy" / "kubernetes.yaml").read_text())["spec"]["template"]["spec"]
PAGES = sorted((ROOT / "docs" / "where-it-runs").glob("*.md"))


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.+)$", DOCKERFILE, re.MULTILINE)


def test_the_image_starts_a_worker_as_a_user_without_rights() -> None:
    (command,) = instructions("CMD")
    words = json.loads(command)
    assert words[0] == "prefect"
    prefect_app.parse_args(words[1:], exit_on_error=False, print_error=False)
    assert instructions("USER")[-1] != "root"
    uid = re.search(r"--uid (\d+)", DOCKERFILE)
    assert uid is not None
    assert POD["securityContext"]["runAsUser"] == int(uid[1])


def test_no_file_holds_a_secret() -> None:
    for line in instructions("ENV") + instructions("ARG"):
        assert not re.search(r"(?i)key|token|password|secret", line), line
    (container,) = POD["containers"]
    for variable in container["env"]:
        assert "value" not in variable, "from a secret of the cluster"


def test_a_flow_has_time_to_end_well() -> None:
    assert POD["terminationGracePeriodSeconds"] >= run_page._DRAIN + 20


def yaml_blocks(page: str) -> list[dict[str, Any]]:
    return [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)]


def deployments(page: str) -> list[dict[str, Any]]:
    return [one for block in yaml_blocks(page) for one in block.get("deployments", ())]


def test_the_image_has_what_runs_without_a_block_need() -> None:
    """Their embedded sandbox simulates the circuits."""
    (package,) = [line for line in instructions("ARG") if line.startswith("PACKAGE=")]
    assert "sandbox" in Requirement(package.removeprefix("PACKAGE=")).extras


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_deployments_of_a_page_name_flows_that_there_are(page: Any) -> None:
    for deployment in deployments(page.read_text()):
        module, _, name = deployment["entrypoint"].partition(":")
        assert callable(getattr(__import__(module, fromlist=[name]), name))
    for block in yaml_blocks(page.read_text()):
        if "deployments" in block:
            # Without it `prefect deploy` takes a folder that is not in the image, as soon as an image is named.
            (step,) = block["pull"]
            assert step["prefect.deployments.steps.set_working_directory"]["directory"] == instructions("WORKDIR")[-1]
    wanted = {"containers", "kubernetes"}
    assert bool(deployments(page.read_text())) is (page.stem in wanted)
