"""`cyclemlp weights list | get | check`: the published weights, and what any weights file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cyclemlp_backbones import files
from cyclemlp_backbones.checks import existing_file, visible
from cyclemlp_backbones.cli import example
from cyclemlp_backbones.cli import parser as command_parser
from cyclemlp_backbones.variants import VARIANTS


def main(argv: list[str]) -> int:
    parser = command_parser("weights", __doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="list | get | check")
    shown, get, check = (
        actions.add_parser(name, help=text, epilog=example(f"weights {name}"), allow_abbrev=False)
        for name, text in (
            ("list", "the published files, and which of them are here"),
            ("get", "fetch a published file; prints its path and sha256"),
            ("check", "compare a file with the network, name by name, and run an image"),
        )
    )
    shown.add_argument("--json", action="store_true", help="print JSON, for programs")
    for action in (get, check):
        action.add_argument("source", metavar="SOURCE", help="b1 to b5 (the published file), a URL or a path")
    check.add_argument("--layout", choices=("paddle", "torch"), help="of Linear weights, where the file cannot tell")
    check.add_argument(
        "--names", action="store_true", help="print every name and shape in the file; of one that does not fit, always"
    )
    arguments = parser.parse_args(argv)

    from cyclemlp_backbones.weights.download import cached_path
    from cyclemlp_backbones.weights.loading import PUBLISHED, locate_weights

    if arguments.action == "list":
        here = {name: str(path) for name, url in PUBLISHED.items() if (path := cached_path(url)).exists()}
        if arguments.json:
            print(json.dumps({name: {"url": url, "path": here.get(name)} for name, url in PUBLISHED.items()}, indent=1))
            return 0
        for name, url in PUBLISHED.items():
            print(f"{name}  {url}  {f'here: {here[name]}' if name in here else 'not fetched'}")
        return 0
    source = arguments.source
    path = locate_weights(*((True, source) if source in VARIANTS and not Path(source).exists() else (source, "")))
    existing_file(path, "weights file", (".pdparams", ".pth", ".safetensors"))
    print(f"{path}: {path.stat().st_size:,} bytes")
    print(f"sha256 {files.sha256(path)}")
    if arguments.action == "get":
        return 0
    _check(path, arguments.layout, arguments.names)
    return 0


def _print_names(path: Path) -> None:
    from cyclemlp_backbones.weights.formats import read_checkpoint

    arrays = read_checkpoint(path)
    for name, array in arrays.items():
        print(f"  {visible(name)} {list(array.shape)} {array.dtype}")
    print(f"{len(arrays)} arrays of {sum(array.size for array in arrays.values()):,} numbers")


def _check(path: Path, layout: Any, names: bool) -> None:
    import paddle

    from cyclemlp_backbones.deploy.export import variant_of
    from cyclemlp_backbones.factory import read_network
    from cyclemlp_backbones.weights.pickles import CheckpointError

    if names:
        _print_names(path)
    try:
        model, report = read_network(path, layout=layout)
    except CheckpointError:
        if not names:
            _print_names(path)
        raise
    blocks = [len(stage) for stage in model.network[::2]]
    print(f"CycleMLP {variant_of(model) or 'of a size of its own'}, blocks {blocks}")
    print(report)
    model.eval()
    image = np.sin(np.arange(model.in_channels * 224 * 224, dtype=np.float64) / 997).astype(np.float32)
    with paddle.no_grad():
        y = model(paddle.to_tensor(image.reshape([1, model.in_channels, 224, 224])))
    if model.num_classes is None:
        for spec, stage in zip(model.stage_specs, y):
            print(f"  stride {spec.stride:2}: mean {float(stage.mean()):+.4f}, deviation {float(stage.std()):.4f}")
        return
    best = np.argsort(-y.numpy()[0])[:5]
    print("of a fixed image, the five best: " + ", ".join(f"{k} ({y.numpy()[0, k]:+.3f})" for k in best))
