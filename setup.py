"""What pyproject.toml cannot say: which folders are installed, and the README as it stands on a package index.

Flows and automations stand at the top of the repository and are installed inside the package. The README's links
lead to files of the repository, which a package's page has not: there they lead to the repository's own pages.
"""

import re
import tomllib
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
REPOSITORY = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]

setup(
    packages=[*find_packages(include=["prefect_qruntime*"]), "prefect_qruntime.flows", "prefect_qruntime.automations"],
    package_dir={"prefect_qruntime.flows": "flows", "prefect_qruntime.automations": "automations"},
    long_description=re.sub(
        r"\]\((?!https?:|#)([^)\s]+)\)",
        rf"]({REPOSITORY}/blob/main/\1)",
        (HERE / "README.md").read_text(encoding="utf-8"),
    ),
    long_description_content_type="text/markdown",
)
