"""`cyclemlp info VARIANT`: what one variant costs and returns for an image of a given size."""

from __future__ import annotations

import dataclasses
import json

from cyclemlp_backbones.checks import check_integer
from cyclemlp_backbones.cli import parser as command_parser
from cyclemlp_backbones.complexity import memory, multiply_adds, parse_size, stage_sizes
from cyclemlp_backbones.variants import VARIANTS, variant_name


def _cost(parameters: int, macs: int) -> str:
    return f"{parameters / 1e6:.3f} M parameters, {macs / 1e9:.3f} G multiply-adds"


def main(argv: list[str]) -> int:
    parser = command_parser("info", __doc__)
    parser.add_argument("variant", help="a name of `cyclemlp variants`")
    parser.add_argument("--size", default="224x224", help="HEIGHTxWIDTH of the image, default 224x224")
    parser.add_argument("--num-classes", type=int, default=1000, help="of the classifier, default 1000")
    parser.add_argument("--memory", action="store_true", help="estimate the memory of a training step and of inference")
    parser.add_argument("--batch", type=int, default=1, help="images at once, for --memory, default 1")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    arguments = parser.parse_args(argv)
    name = variant_name(arguments.variant)
    height, width = parse_size(arguments.size)
    check_integer("--num-classes", arguments.num_classes, 1)
    variant = VARIANTS[name]
    needed = memory(variant, height, width, check_integer("--batch", arguments.batch, 1)) if arguments.memory else {}
    head = (variant.embed_dims[-1] + 1) * (arguments.num_classes - 1000)
    pyramid = variant.parameters - (variant.embed_dims[-1] + 1) * 1000 + 2 * sum(variant.embed_dims[:-1])
    classifier_macs = multiply_adds(variant, height, width, num_classes=arguments.num_classes)
    pyramid_macs = multiply_adds(variant, height, width, num_classes=None)
    if arguments.json:
        costs = {"parameters": variant.parameters + head, "multiply_adds": classifier_macs}
        backbone = {"parameters": pyramid, "multiply_adds": pyramid_macs}
        maps = [
            {"stride": 4 * 2**stage, "channels": channels, "height": h, "width": w}
            for stage, ((h, w), channels) in enumerate(zip(stage_sizes(height, width), variant.embed_dims))
        ]
        known = dataclasses.asdict(variant)
        print(
            json.dumps(
                {"variant": name, **known, "classifier": costs, "backbone": backbone, "maps": maps, **needed}, indent=1
            )
        )
        return 0
    whose = (
        "of the authors' own network, which this reconstruction of its sizes may not be" if variant.swin_like else ""
    )
    top1 = f"{variant.paper_top1} % ({whose or 'not trained here'})" if variant.paper_top1 else "none: not in the paper"
    print(f"CycleMLP-{name.upper()}, image {height} x {width}")
    print(f"  blocks per stage   {variant.depths}")
    print(f"  channels           {variant.embed_dims}")
    print(f"  mlp ratios         {variant.mlp_ratios}")
    print(f"  classifier         {_cost(variant.parameters + head, classifier_macs)}")
    print(f"  backbone           {_cost(pyramid, pyramid_macs)}")
    print(f"  paper's top-1      {top1}")
    print("  pyramid")
    for stage, ((h, w), channels) in enumerate(zip(stage_sizes(height, width), variant.embed_dims)):
        print(f"    {stage}: stride {4 * 2**stage:2}, [N, {channels}, {h}, {w}]")
    if needed:
        state, kept, inference = (f"{bytes / 2**30:.2f} GiB" for bytes in needed.values())
        print(f"  estimated memory, float32, batch of {arguments.batch}; heads come on top")
        print(f"    training         {state} for weights, gradients and AdamW, {kept} for what backward needs")
        print(f"    inference        {inference}")
    return 0
