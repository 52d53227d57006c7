"""Only what pyproject.toml cannot say: folders at the top of the repository ship inside the package."""

from setuptools import find_namespace_packages, find_packages, setup

FOLDERS = ("seg_configs", "det_configs", "classification")

setup(
    packages=[
        *find_packages(include=["cyclemlp_backbones*"]),
        *(f"cyclemlp_backbones.{name}" for name in find_namespace_packages(include=[f"{name}*" for name in FOLDERS])),
    ],
    package_dir={f"cyclemlp_backbones.{name}": name for name in FOLDERS},
    package_data={"": ["py.typed", "*.yml", "versions.json", "*.cc"]},
)
