"""`cyclemlp convert IN OUT`: rewrites any weights file as `.pdparams` or `.safetensors`, in Paddle's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cyclemlp_backbones.cli import parser as command_parser

SUFFIXES = (".pdparams", ".safetensors")


def main(argv: list[str]) -> int:
    parser = command_parser("convert", __doc__)
    parser.add_argument("input", metavar="IN", type=Path, help="a .pdparams, .pth or .safetensors file")
    parser.add_argument(
        "output", metavar="OUT", type=Path, help="a .pdparams or .safetensors file; the suffix tells which"
    )
    parser.add_argument(
        "--layout",
        choices=("paddle", "torch"),
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

    from cyclemlp_backbones.factory import read_network
    from cyclemlp_backbones.weights.formats import write_checkpoint

    model, report = read_network(arguments.input, layout=arguments.layout)
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
