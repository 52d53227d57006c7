"""`cyclemlp export`: a trained checkpoint as a folder that `cyclemlp predict` and other programs run."""

from __future__ import annotations

import argparse
from pathlib import Path

from cyclemlp_backbones.checks import check_integer, visible
from cyclemlp_backbones.cli import parser as command_parser
from cyclemlp_backbones.deploy.manifest import FORMATS, TASKS, check_folder
from cyclemlp_backbones.variants import MIN_SIZE


def parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "export",
        "Writes OUT: the model, which takes any batch size, height and width, and cyclemlp.yml, which says "
        "how to prepare images for it and what its classes are.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="trained weights: .pdparams, .pth or .safetensors")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument(
        "--task", required=True, choices=TASKS, help="classifier, maps of the backbone, segmentation, detection"
    )
    parser.add_argument("--config", metavar="FILE", help="seg: PaddleSeg's configuration; det: PaddleDetection's")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY=VALUE", help="seg, det: override the configuration"
    )
    parser.add_argument(
        "--format", default="paddle", choices=(*FORMATS, "paddlex"), help="default: %(default)s; seg, det: paddlex"
    )
    parser.add_argument(
        "--device",
        default="cpu",
        choices=("cpu", "gpu"),
        help="which the graph is made for, default %(default)s",
    )
    parser.add_argument(
        "--nms", action="store_true", help="det, onnx: suppression in the file, which RetinaNet, GFL and FCOS leave out"
    )
    parser.add_argument("--class-names", metavar="FILE", help="text file with a class's name a line")
    parser.add_argument("--size", type=int, default=224, help="cls: side of the crop, default %(default)s")
    for name, text, values in (
        ("--mean", "means", [0.485, 0.456, 0.406]),
        ("--std", "standard deviations", [0.229, 0.224, 0.225]),
    ):
        told = f"cls, features: {text} of the channels, default ImageNet's"
        parser.add_argument(name, nargs=3, type=float, default=values, metavar=("R", "G", "B"), help=told)
    parser.add_argument(
        "--layout", choices=("paddle", "torch"), help="cls, features: of Linear weights, where the file cannot tell"
    )
    parser.add_argument(
        "--quantize",
        choices=("dynamic", "static", "fp16"),
        help="onnx: int8, by ONNX Runtime; weights only (dynamic) or calibrated on images (static); or half precision",
    )
    parser.add_argument("--calibration", metavar="DIR", type=Path, help="folder of images for --quantize static")
    parser.add_argument("--no-verify", action="store_true", help="do not compare what was written with the network")
    parser.add_argument("--force", action="store_true", help="overwrite an earlier export in OUT")
    return parser


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    _check(args)
    from cyclemlp_backbones.deploy.export import export

    check_folder(args.out, args.force)
    if args.task == "seg":
        from cyclemlp_backbones.adapters.paddleseg.export import seg_export

        model = seg_export(args.checkpoint, args.config, opts=args.opts, class_names=args.class_names)
    elif args.task == "det":
        from cyclemlp_backbones.adapters.paddledet.export import det_export

        format = "onnx" if args.format == "onnx" else "paddle"
        model = det_export(
            args.checkpoint, args.config, format=format, opts=args.opts, class_names=args.class_names, nms=args.nms
        )
    else:
        from cyclemlp_backbones.deploy.networks import network_export

        model = network_export(
            args.checkpoint,
            args.task,
            layout=args.layout,
            size=args.size,
            mean=tuple(args.mean),
            std=tuple(args.std),
            class_names=args.class_names,
        )
    if args.format == "paddlex":
        from cyclemlp_backbones.adapters.paddlex import export_paddlex

        name = export_paddlex(model, args.out, args.device)
        print(visible(f'wrote {args.out}: `paddlex.create_model("{name}", model_dir="{args.out}")` runs it'))
        return 0
    manifest = export(
        model,
        args.out,
        format=args.format,
        device=args.device,
        overwrite=args.force,
        quantization=args.quantize,
        calibration=args.calibration,
        verified=not args.no_verify,
    )
    size = sum((args.out / name).stat().st_size for name in manifest.files)
    what = f"{manifest.architecture} {manifest.variant or ''}, {', '.join(manifest.files)}, {size / 1e6:.1f} MB"
    checked = "not compared" if args.no_verify else f"equal to the network in {len(manifest.samples)} runs"
    if manifest.quantization and not args.no_verify:
        checked = f"equal to the network before {manifest.quantization}"
    print(visible(f"wrote {args.out}: {what}, {checked}; `cyclemlp predict {args.out} IMAGES --out DIR` runs it"))
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.task in ("seg", "det") and not args.config:
        raise ValueError(f"--task {args.task} needs --config FILE, the configuration that the model was trained with")
    if args.task in ("cls", "features") and (args.config or args.opts):
        raise ValueError(f"--task {args.task} takes no --config and --opts: the checkpoint tells the network's size")
    if args.format == "paddlex" and (args.task not in ("seg", "det") or args.force):
        raise ValueError("--format paddlex takes the tasks seg and det, a new folder, and no --force")
    if not Path(args.checkpoint).is_file():
        raise FileNotFoundError(f"no checkpoint {args.checkpoint}")
    check_integer("--size", args.size, MIN_SIZE)
    if args.nms and (args.task, args.format) != ("det", "onnx"):
        raise ValueError("--nms takes --task det and --format onnx; Paddle's format has suppression always")
    if args.quantize and args.format != "onnx":
        raise ValueError("--quantize takes --format onnx")
    if (args.quantize == "static") != (args.calibration is not None):
        raise ValueError("--quantize static and --calibration DIR go together")
    if args.calibration is not None:
        if not args.calibration.is_dir():
            raise FileNotFoundError(f"no folder {args.calibration}; --calibration takes a folder of images")
        from cyclemlp_backbones.deploy.images import find_images

        find_images([args.calibration])
