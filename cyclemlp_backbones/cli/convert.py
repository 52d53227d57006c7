"""`cyclemlp convert IN OUT`: rewrites any weights file as `.pdparams` or `.safetensors`, in Paddle's layout."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cyclemlp_backbones.cyclenet import CycleNet
from cyclemlp_backbones.weights.formats import LAYOUTS, CheckpointError, read_checkpoint_file, write_checkpoint
from cyclemlp_backbones.weights.loading import load_arrays

SUFFIXES = (".pdparams", ".safetensors")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="cyclemlp convert", description=__doc__)
    parser.add_argument("input", metavar="IN", type=Path, help="a .pdparams, .pth or .safetensors file")
    parser.add_argument(
        "output", metavar="OUT", type=Path, help="a .pdparams or .safetensors file; the suffix tells which"
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="layout of IN's Linear weights, where IN cannot tell: paddle [in, out], torch [out, in]",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the numbers in OUT (default: %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    arguments = parser.parse_args(argv)
    output: Path = arguments.output
    if output.suffix not in SUFFIXES:
        raise ValueError(f"cannot write {output}; its name has to end in {' or '.join(SUFFIXES)}")
    if output.exists() and not arguments.force:
        raise ValueError(f"{output} exists already; choose another name, or overwrite it with --force")
    if not output.parent.is_dir():
        raise ValueError(f"there is no folder {output.parent}; create it first")

    source = str(arguments.input)
    file = read_checkpoint_file(arguments.input)
    model = network_of(file.arrays, source)
    report = load_arrays(model, file.arrays, described=source, layout=arguments.layout or file.layout)
    arrays = {name: tensor.numpy().astype(arguments.dtype) for name, tensor in model.state_dict().items()}
    overflown = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if overflown:
        raise ValueError(f"too large for {arguments.dtype}: {', '.join(overflown)}; leave out --dtype")
    write_checkpoint(output, arrays, layout="paddle")
    print(report)
    print(
        f"wrote {output}: {len(arrays)} parameters, {arguments.dtype}, paddle layout, {output.stat().st_size:,} bytes"
    )
    return 0


def network_of(arrays: Mapping[str, np.ndarray], source: str) -> CycleNet:
    """A CycleNet of the size that the names and shapes of a weights file tell, which may be incomplete."""
    prefix = "backbone." if any(name.startswith("backbone.") for name in arrays) else ""
    shapes = {name.removeprefix(prefix): array.shape for name, array in arrays.items() if name.startswith(prefix)}
    stages = ["network.0", "network.2", "network.4", "network.6"]
    needed = [
        "patch_embed.proj.weight",
        *(f"{stage}.0.{layer}.bias" for stage in stages for layer in ("norm1", "mlp.fc1")),
    ]
    missing = [name for name in needed if not shapes.get(name)]
    if missing or len(shapes["patch_embed.proj.weight"]) != 4:
        raise CheckpointError(
            f"{source}: not the weights of a CycleMLP; missing or misshapen: {', '.join(missing or needed[:1])}"
        )
    embed_dims = [shapes[f"{stage}.0.norm1.bias"][0] for stage in stages]
    hidden = [shapes[f"{stage}.0.mlp.fc1.bias"][0] for stage in stages]
    # The half makes int(channels * ratio) come out right whatever the division rounds to.
    ratios = [wide // dim if wide % dim == 0 else (wide + 0.5) / dim for wide, dim in zip(hidden, embed_dims)]
    depths = [
        len({name.split(".")[2] for name in shapes if re.match(re.escape(stage) + r"\.\d+\.", name)})
        for stage in stages
    ]
    in_channels = shapes["patch_embed.proj.weight"][1]
    if "head.bias" in shapes and len(shapes["head.bias"]) == 1:
        return CycleNet(depths, embed_dims, ratios, in_channels=in_channels, num_classes=shapes["head.bias"][0])
    out_indices = [index for index in range(4) if f"norm{2 * index}.weight" in shapes]
    return CycleNet(depths, embed_dims, ratios, in_channels=in_channels, out_indices=out_indices or (0, 1, 2, 3))
