"""What pyproject.toml cannot say: flows and automations stand at the top of the repository and are installed inside."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["prefect_qruntime*"]), "prefect_qruntime.flows", "prefect_qruntime.automations"],
    package_dir={"prefect_qruntime.flows": "flows", "prefect_qruntime.automations": "automations"},
)
