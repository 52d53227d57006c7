"""Only what pyproject.toml cannot say: folders at the top of the repository ship inside the package."""

from setuptools import find_packages, setup

FOLDERS = {"seg_configs": ["**/*.yml"], "det_configs": ["**/*.yml"], "classification": ["configs/**/*.yml"]}

setup(
    packages=[
        *find_packages(include=["cyclemlp_backbones*"]),
        *(f"cyclemlp_backbones.{name}" for name in FOLDERS),
    ],
    package_dir={f"cyclemlp_backbones.{name}": name for name in FOLDERS},
    package_data={
        "cyclemlp_backbones": ["py.typed", "versions.json"],
        **{f"cyclemlp_backbones.{name}": files for name, files in FOLDERS.items()},
    },
)
