"""Long runs, many threads, children of all kinds, no home to write into."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from pathlib import Path

import numpy as np
import paddle
import pytest

from classification.report import read_log
from cyclemlp_backbones import CycleNet
from tests.adapters import tiny_det, tiny_seg
from tests.attack.commands import Command
from tests.attack.test_data import Pretraining, made
from tests.classification.tiny import ROOT, SIZE, run_python

STEPS = """
import json, os, random, sys
import paddle
from cyclemlp_backbones import CycleNet

def memory():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

random.seed(sys.argv[2])
paddle.seed(0)
network = CycleNet(**json.loads(sys.argv[3]))
head = paddle.nn.Conv2D(32, 5, 1)
optimizer = paddle.optimizer.AdamW(1e-3, parameters=[*network.parameters(), *head.parameters()])
for step in range(int(sys.argv[1])):
    height, width = random.randrange(33, 129), random.randrange(33, 129)
    logits = head(network(paddle.randn([random.randrange(1, 4), 3, height, width]))[-1])
    logits.square().mean().backward()
    optimizer.step()
    optimizer.clear_grad()
    print(json.dumps([memory(), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))]), flush=True)
"""


def slope(values) -> float:
    """By step, of the second half."""
    half = np.asarray(values[len(values) // 2 :])
    return float(np.polyfit(np.arange(len(half)), half, 1)[0])


def test_long_run(attack):
    """the network with a head, trained at another size of up to 128 x 128 in each step"""
    steps = attack.times(2000, 60)
    run = run_python("-c", STEPS, steps, attack.rng.random(), json.dumps(SIZE), timeout=1200)
    assert run.returncode == 0, run.stderr
    memory, handles, threads = zip(*map(json.loads, run.stdout.splitlines()))
    assert len(memory) == steps
    assert handles[-1] == handles[steps // 2]
    assert threads[-1] == threads[steps // 2]
    growth = 1024 * slope(memory)
    if steps >= 1000:
        assert growth < 8, growth
    attack.tell(
        f"{steps} steps: resident memory {memory[steps // 2]:.0f} MB at the half, {memory[-1]:.0f} MB at the end, "
        f"slope of the second half {growth:.1f} kB a step; {handles[-1]} open files and {threads[-1]} threads at both"
    )


def test_long_pretraining(attack, tmp_path):
    """pretraining with two workers, a run state every second and an evaluation every twentieth step"""
    steps = attack.times(2000, 40)
    training = made(Pretraining, tmp_path / "p")
    seen = []
    with Command(*training.arguments(None, steps // 5), log=tmp_path / "log", limit=1500) as command:
        while command.process.is_alive():
            try:
                memory = int(Path(f"/proc/{command.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                handles = len(os.listdir(f"/proc/{command.pid}/fd"))
                seen.append((memory / 2**20, handles, len(command.family())))
            except OSError:
                break
            time.sleep(0.2)
        assert command.wait() == 0, command.said[-3000:]
    assert read_log(training.out / "log.jsonl")[-1]["steps"] == steps
    memory, handles, processes = (np.asarray(column) for column in zip(*seen))
    growth = 1024 * slope(memory) * len(memory) / steps
    if steps >= 1000:
        assert growth < 8, growth
        assert handles[-len(handles) // 4 :].max() <= handles[len(handles) // 4 : len(handles) // 2].max()
    assert processes.max() <= 1 + 2 + 2  # the trainer, two workers of the training data, two of an evaluation
    attack.tell(
        f"{steps} steps: resident memory {memory[len(memory) // 2]:.0f} MB at the half, {memory[-2]:.0f} MB at the "
        f"end, slope of the second half {growth:.1f} kB a step; {handles.max()} open files, {processes.max()} "
        "processes at most"
    )


def network() -> CycleNet:
    paddle.seed(0)
    net = CycleNet(**SIZE)
    net.eval()
    return net


def images(count: int) -> list[np.ndarray]:
    random = np.random.RandomState(0)
    return [random.rand(1 + i % 3, 3, 33 + 8 * (i % 7), 40 + 9 * (i % 5)).astype("float32") for i in range(count)]


def infer(net: CycleNet, pictures: list[np.ndarray]) -> list[bytes]:
    with paddle.no_grad():
        return [b"".join(level.numpy().tobytes() for level in net(paddle.to_tensor(image))) for image in pictures]


def test_threads(attack):
    """inference by eight threads at once, with one network"""
    count = attack.times(200, 20)
    net, pictures = network(), images(count)
    expected, found = infer(net, pictures), {}

    def work(number: int) -> None:
        order = np.random.RandomState(number).permutation(count)
        result = infer(net, [pictures[i] for i in order])
        found[number] = [result[i] for i in np.argsort(order)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert len(found) == 8
    assert all(result == expected for result in found.values())
    attack.tell(
        f"8 x {count} images of {len({image.shape for image in pictures})} shapes, each thread in an order of its "
        "own: bit-equal to one thread's"
    )


def _child(queue, count: int) -> None:
    queue.put(infer(network(), images(count)))


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_children(attack, how):
    """inference by children that {how} made, of a process that has computed"""
    times, count = attack.times(20, 2), 5
    expected = infer(network(), images(count))
    context = multiprocessing.get_context(how)
    for _ in range(times):
        queue = context.Queue()
        child = context.Process(target=_child, args=(queue, count))
        child.start()
        try:
            assert queue.get(timeout=300) == expected
        finally:
            child.kill()
            child.join()
    attack.tell(f"{times} children, one thread of the CPU each: bit-equal to their parent's")


def test_read_only_home(attack, tmp_path):
    """every command where no file can be made in the home folder"""
    paddle.save(dict(build().state_dict()), str(tmp_path / "w.pdparams"))
    tiny_seg.write_data(tmp_path / "seg")
    tiny_det.write_data(tmp_path / "det")
    seg = tiny_seg.write_config(tmp_path / "seg", tiny_seg.SEMANTIC_FPN, iters=1)
    det = tiny_det.write_config(tmp_path / "det", "retinanet", RetinaHead={"prior_prob": 0.1}, epoch=1)
    commands = [
        ("variants",),
        ("info", "b0"),
        ("convert", tmp_path / "w.pdparams", tmp_path / "w.safetensors"),
        ("demo-data", "--format", "seg", "--train", "2", "--val", "1", "--size", "64", tmp_path / "demo"),
        ("configs", tmp_path / "configs"),
        ("doctor",),
        ("export", "--task", "cls", "--size", "64", tmp_path / "w.pdparams", tmp_path / "exported"),
        ("predict", "--out", tmp_path / "predicted", tmp_path / "exported", tmp_path / "seg" / "0.png"),
        ("benchmark", "--variant", "b0", "--size", "64x64", "--rounds", "1"),
        ("cls", "config"),
        made(Pretraining, tmp_path / "cls").arguments(None, 1),
        ("seg", "train", "--config", seg, "--save_dir", tmp_path / "seg" / "out"),
        ("det", "train", "-c", det),
    ]
    if attack.times(0, 1):
        commands = [commands[0], commands[2], commands[-3]]
    home = {"HOME": "/proc", "MPLCONFIGDIR": "", "XDG_CACHE_HOME": ""}  # /proc: root may write anywhere else
    for command in commands:
        run = _python("-m", "cyclemlp_backbones", *command, **home)
        assert run.returncode == 0, (command, run.stdout[-1000:], run.stderr[-3000:])
    training = made(Pretraining, tmp_path / "download").arguments(None, 1)
    download = _python(
        "-m", "cyclemlp_backbones", *training, "--model-pretrained", "https://127.0.0.1:9/b1.pth", **home
    )
    assert download.returncode == 1
    assert "set CYCLEMLP_HOME" in download.stderr, download.stderr[-3000:]
    attack.tell(f"{len(commands)} commands work; a download tells to set CYCLEMLP_HOME")


def build():
    from cyclemlp_backbones import build_classifier

    paddle.seed(0)
    return build_classifier("b0", num_classes=4)


def _python(*arguments: object, **environment: str):
    return tiny_seg.python(*arguments, cwd=ROOT, timeout=120, **environment)
