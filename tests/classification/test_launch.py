"""Two processes with gloo, which Paddle takes on a CPU by itself, against one process with the doubled batch.

Mixup and drop path are off, since each process draws its own. What remains is rounding, which AdamW amplifies where a
gradient is near zero.
"""

import socket
import subprocess
import sys

import numpy as np
import pytest

from classification import distributed
from classification.report import read_log
from classification.trainer import Trainer
from cyclemlp_backbones import read_checkpoint as weights
from cyclemlp_backbones.adapters.launch import run_action
from tests.classification.tiny import ROOT, arguments, environment, run_python, tiny_config

pytestmark = pytest.mark.slow
PLAIN = {"mix__mixup": 0.0, "mix__cutmix": 0.0, "model__drop_path_rate": 0.0}
TOLERANCE = 1e-5  # measured: 6e-8; the weights move by 4e-3


def launch(folder, *command, nodes=()):
    return [sys.executable, "-m", "paddle.distributed.launch", "--log_dir", str(folder), *nodes, *command]


def start(command):
    """In a process group of its own: the launcher ends the whole group that it is in."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True, **quiet)


@pytest.fixture(scope="module")
def one(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    Trainer(tiny_config(digits, folder, **PLAIN, data__batch_size=8)).run()
    return folder


def check_equal(two, one):
    pair = weights(two / "last.pdparams"), weights(one / "last.pdparams")
    assert max(np.abs(pair[0][name] - pair[1][name]).max() for name in pair[1]) < TOLERANCE
    counts = [[row for row in read_log(run / "log.jsonl") if row["event"] == "evaluation"] for run in (two, one)]
    assert [row["images"] for row in counts[0]] == [13, 13]  # an odd number: nobody is counted twice
    assert [row["top5"] for row in counts[0]] == [row["top5"] for row in counts[1]]


def test_two_processes_equal_one_with_the_doubled_batch(digits, one, tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(
        "import sys\n"
        "from classification.commands import train_config\n"
        "import paddle\n"
        "from classification.distributed import join\n"
        "from classification.trainer import Trainer\n"
        "config = train_config(sys.argv[1:])\n"
        "world = join('cpu')\n"
        "trainer = Trainer(config, world)\n"
        "trainer.run()\n"
        "paddle.save(trainer.model.state_dict(), f'{config.run.output}/rank{world.rank}.pdparams')\n"
    )
    options = arguments(digits, tmp_path / "two", **PLAIN, data__batch_size=2, optimizer__accumulate=2)
    command = launch(tmp_path / "log", "--nproc_per_node", "2", str(script), *options)
    with start(command) as run:
        run.wait(timeout=120)
    assert run.returncode == 0, (tmp_path / "log" / "workerlog.1").read_text()
    ranks = [weights(tmp_path / "two" / f"rank{rank}.pdparams") for rank in range(2)]
    assert all(np.array_equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
    check_equal(tmp_path / "two", one)


def test_two_nodes_on_loopback(digits, one, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        master = f"127.0.0.1:{free.getsockname()[1]}"
    options = arguments(digits, tmp_path / "two", **PLAIN, data__batch_size=4)
    nodes = []
    for rank in range(2):
        where = ["--nnodes", "2", "--nproc_per_node", "1", "--master", master, "--rank", str(rank)]
        command = launch(tmp_path / f"log{rank}", "classification/train.py", *options, nodes=where)
        nodes.append(
            subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
    try:
        codes = [node.wait(timeout=400) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    logs = "\n".join(path.read_text() for path in tmp_path.glob("log*/workerlog*"))
    assert codes == [0, 0], logs
    check_equal(tmp_path / "two", one)


def test_a_failed_process_of_several_does_not_wait_for_its_threads(tmp_path):
    """Threads of the communication have kept failed processes alive; here one of another kind does."""
    script = tmp_path / "fails.py"
    script.write_text(
        "import sys, threading, time\n"
        "import paddle.distributed\n"
        "from classification import commands\n"
        "paddle.distributed.is_initialized = lambda: True\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "def bug(argv, prog):\n"
        "    raise RuntimeError('a bug')\n"
        "if sys.argv[1] == 'bug':\n"
        "    commands.train = bug\n"
        "sys.exit(commands.main(['train', '--set', 'run.device=cpu']))\n"
    )
    for kind, message in (("mistake", "error: data.train_images is not set"), ("bug", "RuntimeError: a bug")):
        run = run_python(script, kind, timeout=60)
        assert run.returncode == 1
        assert run.stderr.count(message) == 1


def test_two_processes_that_both_fail_end(digits, tmp_path):
    options = arguments(digits, tmp_path / "out", **PLAIN, distillation__type="soft")  # without the teacher's weights
    with start(launch(tmp_path / "log", "--nproc_per_node", "2", "classification/train.py", *options)) as run:
        assert run.wait(timeout=120) != 0
    logs = [(tmp_path / "log" / f"workerlog.{rank}").read_text() for rank in range(2)]
    assert any("classification train: error: unknown teacher 'RegNetX_4GF'" in log for log in logs), logs


def test_a_port_in_use_is_told(monkeypatch):
    """Paddle's first process would abort, without a word of it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        rank = {"PADDLE_TRAINERS_NUM": "2", "PADDLE_TRAINER_ID": "0", "PADDLE_MASTER": f"127.0.0.1:{port}"}
        for name, value in rank.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(distributed.dist, "init_parallel_env", lambda: pytest.fail("would abort"))
        for joins in (distributed.join, lambda device: run_action("paddleseg", "train", None)):
            with pytest.raises(OSError, match=f"port {port} of this launch .*: Address already in use; give another"):
                joins("cpu")
