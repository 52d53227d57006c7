"""Only what pyproject.toml cannot say: the configurations at the top of the repository ship inside the package."""

from setuptools import find_packages, setup

CONFIG_FOLDERS = ("seg_configs", "det_configs")

setup(
    packages=[
        *find_packages(include=["cyclemlp_backbones*"]),
        *(f"cyclemlp_backbones.{name}" for name in CONFIG_FOLDERS),
    ],
    package_dir={f"cyclemlp_backbones.{name}": name for name in CONFIG_FOLDERS},
    package_data={f"cyclemlp_backbones.{name}": ["**/*.yml"] for name in CONFIG_FOLDERS},
)
