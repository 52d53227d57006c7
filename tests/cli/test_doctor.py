"""Each known conflict is made, as metadata and modules that come first on the path, and has to be found."""

import json
import os
import subprocess
import sys

import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file

from cyclemlp_backbones import environment
from cyclemlp_backbones.environment import conflicts
from tests import matrix
from tests.adapters.tiny_seg import python

pytestmark = pytest.mark.slow

BROKEN_CV2 = 'raise ImportError("numpy.core.multiarray failed to import")'
# Like Paddle 2.6: what loads zlib after it crashes.
PADDLE_WITH_ZLIB_SYMBOLS = """
import sys
if "zlib" not in sys.modules:
    class Crash:
        def find_spec(self, name, path=None, target=None):
            if name == "zlib":
                import os, signal
                os.kill(os.getpid(), signal.SIGSEGV)
    sys.meta_path.insert(0, Crash())
"""


def doctor(folder, packages, modules, **environment):
    """Runs `cyclemlp doctor` where `packages` (name -> version) seem installed and `modules` (name -> source) are found
    first; every other package that it knows of is out of sight, as in an environment that holds these only."""
    for name, version in packages.items():
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source)
    start = (
        "import sys, importlib.metadata as metadata; found = metadata.version\n"
        "def version(name):\n"
        f"    if name in {sorted(packages)!r}: return found(name)\n"
        "    raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = version\n"
        "from cyclemlp_backbones.cli import main; sys.exit(main(['doctor']))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.getcwd()]), **environment}
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, env=env)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("packages", "modules", "problem", "remedy"),
    [
        (
            {"paddlepaddle": "3.3.1", "numpy": "2.2.6", "opencv-python": "4.5.5.64"},
            {"cv2": BROKEN_CV2},
            "numpy 2.2.6 with opencv-python 4.5.5.64",
            'pip install "numpy<2"',
        ),
        (
            {"paddlepaddle": "3.3.1", "opencv-python": "4.5.5.64"},
            {"cv2": BROKEN_CV2},
            "`import cv2` (opencv-python 4.5.5.64) fails: ImportError: numpy.core.multiarray failed to import",
            "pip install --force-reinstall opencv-python==4.5.5.64",
        ),
        (
            {"paddlepaddle": "3.3.1", "opencv-python": "4.11.0.86"},
            {"cv2": 'raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")'},
            "libGL.so.1",
            "pip install opencv-python-headless",
        ),
        (
            {"paddlepaddle": "3.3.1", "opencv-python": "4.5.5.64", "opencv-python-headless": "4.10.0.84"},
            {"cv2": ""},
            "opencv-python 4.5.5.64 and opencv-python-headless 4.10.0.84 are installed",
            "pip uninstall -y opencv-python opencv-python-headless",
        ),
        (
            {"paddlepaddle": "2.6.2", "protobuf": "7.36.2"},
            {},
            "protobuf 7.36.2 with Paddle 2.6.2",
            'pip install "protobuf<7"',
        ),
        (
            {"paddlepaddle": "3.3.1", "scikit-learn": "1.8.0", "numpy": "1.23.5"},
            {"sklearn": ""},
            "scikit-learn 1.8.0 with numpy 1.23.5",
            'pip install "scikit-learn<1.8"',
        ),
        (
            {"paddlepaddle": "3.3.1", "paddlepaddle-gpu": "2.6.2"},
            {},
            "are both installed",
            "pip uninstall -y paddlepaddle paddlepaddle-gpu",
        ),
        ({"numpy": "1.23.5"}, {}, "PaddlePaddle is not installed", 'pip install "cyclemlp-backbones[cpu]"'),
        ({"paddlepaddle": "2.4.0"}, {}, "older than 2.6.2", "pip install paddlepaddle==3.3.1"),
    ],
)
def test_a_conflict_is_found_with_its_remedy(tmp_path, packages, modules, problem, remedy):
    status, out = doctor(tmp_path, packages, {"paddle": "", **modules}, OMP_NUM_THREADS="2")
    assert status == 1
    assert problem in out
    assert remedy in out
    assert " 0 notes" in out


def test_zlib_after_paddle_is_found(tmp_path):
    status, out = doctor(tmp_path, {"paddlepaddle": "2.6.2"}, {"paddle": PADDLE_WITH_ZLIB_SYMBOLS}, OMP_NUM_THREADS="2")
    assert "imports paddle before zlib" in out
    assert "SIGSEGV" in out
    assert "`import zlib` above `import paddle`" in out
    assert status == 0  # our own commands import zlib first


def test_missing_threads_are_noted(tmp_path):
    _, out = doctor(tmp_path, {"paddlepaddle": "3.3.1"}, {"paddle": ""}, OMP_NUM_THREADS="")
    assert "note: OMP_NUM_THREADS is not set" in out


def test_a_sound_environment_has_no_finding(tmp_path):
    packages = {"paddlepaddle": "2.6.2", "numpy": "1.26.4", "opencv-python": "4.5.5.64", "protobuf": "6.33.0"}
    status, out = doctor(tmp_path, packages, {"paddle": "", "cv2": ""}, OMP_NUM_THREADS="2")
    assert status == 0
    assert out.endswith("no conflict found\n")


def test_numpy_in_which_one_element_is_no_number_is_found():
    (finding,) = conflicts({"paddlepaddle": "3.3.1", "numpy": "2.4.6"})
    assert finding.remedy == 'pip install "numpy<2.4"'
    assert not list(conflicts({"paddlepaddle": "3.3.1", "numpy": "2.3.5"}))


def test_what_the_matrix_gave_is_said(tmp_path, monkeypatch):
    cell = "{}.{}-3.3.1".format(*sys.version_info[:2])
    path = tmp_path / "versions.json"
    path.write_text(json.dumps({cell: {"core": "yes", "paddledet 2.6.0": "pip: no", "with": "numpy 1"}}))
    monkeypatch.setattr(environment, "VERSIONS", path)
    assert environment.support({"paddlepaddle": "3.3.1", "paddleseg": "2.9.1"}) == {
        "core": "tested",
        "cls": "not tested",
        "predict": "not tested",
        "paddleseg 2.9.1": "not tested",
        "paddledet 2.6.0": "known not to work: pip: no",
    }
    assert set(environment.support({"paddlepaddle-gpu": "3.3.1"}).values()) == {"not tested"}


def test_the_document_shows_what_the_doctor_knows():
    assert matrix.TABLE.read(matrix.DOCUMENT) == matrix.table(json.loads(environment.VERSIONS.read_text()))


def test_the_environment_of_the_tests_is_sound_and_modules_in_the_current_folder_are_not_run(tmp_path):
    for name in ("paddle", "json", "cv2", "zlib"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    code = f"import sys; sys.path.insert(0, {str(matrix.ROOT)!r}); "
    code += "from cyclemlp_backbones.cli import main; sys.exit(main(['doctor', '--json']))"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["packages"]["paddlepaddle"] == paddle.__version__
    assert "error" not in [finding["level"] for finding in told["findings"]]
    assert not (tmp_path / "ran").exists()


def test_commands_need_no_home_to_write_into(tmp_path):
    """Importing Paddle makes a folder there, or fails. Not even root can make one below /proc, or below a file."""
    (tmp_path / "file").touch()
    save_file({"weight": np.ones(3, "float32")}, tmp_path / "some.safetensors")
    homes = ("/proc", str(tmp_path / "file" / "home"))
    doctor = python("-m", "cyclemlp_backbones", "doctor", cwd=tmp_path, HOME=homes[0])
    assert doctor.returncode == 0
    assert "note: nothing can be written into the home folder" in doctor.stdout
    commands = "cli.main(['convert', 'some.safetensors', 'other.safetensors']); cli.main(['variants'])"
    for home in homes:
        code = f"import os; from cyclemlp_backbones import cli; {commands}; print(os.environ['HOME'])"
        run = python("-c", code, cwd=tmp_path, HOME=home)
        assert "error: some.safetensors: not the weights of a CycleMLP" in run.stderr
        assert run.stdout.splitlines()[-1] == home
