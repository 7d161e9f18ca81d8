"""What pyproject.toml cannot say: the example flows stand at the top of the repository and are installed inside."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["prefect_qruntime*"]), "prefect_qruntime.flows"],
    package_dir={"prefect_qruntime.flows": "flows"},
)
