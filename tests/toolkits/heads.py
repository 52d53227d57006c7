"""`heads.py ROOT`: which models of the checkout ROOT train and evaluate with CycleMLP-B0 as their backbone.

Reads rows of `heads.yml` from standard input, as JSON and one a line, and writes a line for each: what stands in the
model's way, or "". The row "models" gets their names, and whether each takes a backbone. A model has a process of its
own, forked before Paddle has computed anything: no crash and no hang ends the run.
"""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT, REPOSITORY = Path(sys.argv[1]).resolve(), Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(REPOSITORY)]
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # the toolkits print

import numpy as np  # noqa: E402
import paddle  # noqa: E402
import yaml  # noqa: E402

from cyclemlp_backbones.cyclenet import CycleNet  # noqa: E402
from tests.adapters import tiny_det, tiny_seg  # noqa: E402
from tests.adapters.tiny_det import merge  # noqa: E402

IS_SEG = (ROOT / "paddleseg").is_dir()
if IS_SEG:
    import paddleseg.core.train
    from paddleseg.cvlibs import Config, SegBuilder, manager
else:
    from ppdet.core.workspace import create, global_config, load_config
    from ppdet.data.source.coco import COCODataSet
    from ppdet.engine import Trainer  # noqa: F401  registers all there is

    class Tracks(COCODataSet):
        """One object an image, and its number, which trackers learn."""

        def parse_dataset(self) -> None:
            super().parse_dataset()
            for record in self.roidbs:
                record.update({name: record[name][:1] for name in ("gt_bbox", "gt_class", "is_crowd")})
                record["gt_class"] = record["gt_ide"] = record["gt_track_id"] = np.zeros([1, 1], "int32")


SECONDS = 300
HEIGHT, WIDTH = 97, 65


def train(model: Any, loss_of: Callable[[], Any], *, own: bool) -> None:
    """ValueError unless the loss is finite and its gradient reaches the backbone's first layer.

    At once, or in a second step where the head's last layer starts from zeros.
    """
    model.train()
    optimizer = paddle.optimizer.SGD(1e-4, parameters=model.parameters())
    for _ in range(2):
        loss = loss_of()
        if not np.isfinite(float(loss)):
            raise ValueError(f"the loss is {float(loss)}")
        loss.backward()
        layers = [layer.patch_embed.proj for layer in model.sublayers() if isinstance(layer, CycleNet)]
        gradients = [layer.weight.grad.numpy() for layer in layers if layer.weight.grad is not None]
        if own or any(gradient.any() and np.isfinite(gradient).all() for gradient in gradients):
            return
        optimizer.step()
        optimizer.clear_grad()
    raise ValueError("no gradient reaches the backbone's first layer")


def segmenter(folder: Path, row: dict[str, Any], own: bool) -> None:
    """A step on two images of 64 x 64, then an evaluation of one of HEIGHT x WIDTH."""
    from cyclemlp_backbones.adapters.paddleseg import register_paddleseg

    register_paddleseg(repair=True)
    tiny_seg.write_data(folder, images=2)
    config = Config(str(ROOT / "configs" / row["config"]))
    backbone = {"pretrained": None} if own else dict(tiny_seg.BACKBONE)
    if own:
        config.dic["model"]["backbone"].update(backbone)
    else:
        config.dic["model"]["backbone"] = backbone
    config.dic["model"].update(num_classes=tiny_seg.NUM_CLASSES, pretrained=None)
    data = {"type": "Dataset", "dataset_root": str(folder), "num_classes": tiny_seg.NUM_CLASSES, "mode": "train"}
    data.update(train_path=str(folder / "list.txt"), transforms=[{"type": "Normalize"}], edge=True)
    config.dic["train_dataset"] = data
    merge(config.dic, {"model": row.get("model", {})})
    merge(config.dic, row.get("test", {}))
    builder = SegBuilder(config)
    batch = next(iter(paddle.io.DataLoader(builder.train_dataset, batch_size=2)))
    model = builder.model

    def loss() -> Any:
        logits = model(batch["img"])
        if hasattr(model, "loss_computation"):
            return sum(model.loss_computation(logits, builder.loss, batch))
        labels, edges = (batch[name].astype("int64") for name in ("label", "edge"))
        compute = sys.modules["paddleseg.core.train"].loss_computation  # the attribute of that name is the function
        return sum(compute(logits_list=logits, labels=labels, edges=edges, losses=builder.loss))

    train(model, loss, own=own)
    model.eval()
    with paddle.no_grad():
        logits = paddleseg.core.infer.inference(model, paddle.randn([1, 3, HEIGHT, WIDTH]))
    if logits.shape != [1, tiny_seg.NUM_CLASSES, HEIGHT, WIDTH] or not np.isfinite(logits.numpy()).all():
        raise ValueError(f"for {HEIGHT} x {WIDTH} the logits have the shape {logits.shape}, or are not finite")


def detector(folder: Path, row: dict[str, Any], own: bool) -> None:
    """A step on two images of 128 x 128, then an evaluation of one of HEIGHT x WIDTH, padded to a multiple of `pad`."""
    from cyclemlp_backbones.adapters.paddledet import register_paddledet

    register_paddledet(repair=True)
    parts = [row["config"]] if isinstance(row["config"], str) else row["config"]
    (folder / "config.yml").write_text(yaml.safe_dump({"_BASE_": [str(ROOT / "configs" / part) for part in parts]}))
    config = load_config(str(folder / "config.yml"))
    merge(config, {"use_gpu": False, "pretrain_weights": None})
    if not own:
        config[row.get("part", config.architecture)]["backbone"] = "CycleMLP"
        merge(config, {"CycleMLP": {"arch": "b0", "out_indices": [1, 2, 3]}})
    for kind, size in (("TrainReader", [128, 128]), ("EvalReader", [HEIGHT, WIDTH])):
        if kind in config and "feed" not in row:
            shrink(config[kind], size, row.get("pad", 0))
    merge(config, row.get("model", {}))
    merge(config, row.get("test", {}))
    model = create(config.architecture)
    images, image = synthetic(row["feed"]) if "feed" in row else scenes(folder / "data", config, tracks="part" in row)

    def loss() -> Any:
        losses = model(dict(images))
        return losses.get("loss", sum(losses.values()))

    train(model, loss, own=own)
    model.eval()
    with paddle.no_grad():
        outputs = model(image)
    arrays = [output.numpy() for output in paddle.utils.flatten(outputs) if isinstance(output, paddle.Tensor)]
    if not outputs or not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"the prediction {outputs} has nothing, or numbers that are not finite")


def shrink(reader: Any, size: list[int], pad: int) -> None:
    """Leaves chance out of a reader's transforms; images get `size`, in evaluation padded to a multiple of `pad`."""
    by_chance = (
        r"\w*Random|Mosaic|Mixup|Cutmix|GridMask|AugmentHSV|CenterRand|Lighting|CropWith|\w*Resize$|Pad$|RGBReverse"
    )
    steps = reader.get("sample_transforms") or [{"Decode": {}}, tiny_det.NORMALIZE, {"Permute": {}}]  # of trackers
    steps = [step for step in steps if not re.match(by_chance, next(iter(step)))]
    for step in steps:
        for options in step.values():  # of WarpAffine, which resizes too
            if "input_h" in options:
                options.update(input_h=size[0], input_w=size[1], keep_res=False)
    if not any("WarpAffine" in next(iter(step)) for step in steps):
        steps.insert(1, {"Resize": {"target_size": size, "keep_ratio": False, "interp": 1}})
    batch = [step for step in reader.get("batch_transforms") or [] if not re.match(by_chance, next(iter(step)))]
    if size == [HEIGHT, WIDTH]:
        batch = [{"PadBatch": {"pad_to_stride": pad}}] * (pad > 0) + [step for step in batch if "PadBatch" not in step]
    reader.update({"sample_transforms": steps, "batch_transforms": batch, "shuffle": False, "use_shared_memory": False})
    reader.update({"batch_size": 2 if size == [128, 128] else 1, "inputs_def": {}})
    reader.update({name: -1 for name in ("mixup_epoch", "mosaic_epoch") if name in reader})


def scenes(folder: Path, config: Any, *, tracks: bool) -> list[dict[str, Any]]:
    """A batch for training and one for evaluation, by the configuration's readers."""
    tiny_det.write_data(folder, train=2, val=1)
    path = folder / "annotations/instances_train.json"
    document = json.loads(path.read_text())
    for entry in document["annotations"]:  # of rotated boxes, polygons are read
        x, y, width, height = entry["bbox"]
        entry["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    path.write_text(json.dumps(document))
    batches = []
    trained = config.get("TrainDataset", {})
    fields = (trained if isinstance(trained, dict) else vars(trained)).get("data_fields", [])
    for kind in ("TrainReader", "EvalReader"):
        fields = ["image", "gt_bbox", "gt_class", "is_crowd", *["gt_poly"] * ("gt_poly" in fields)]
        dataset = (Tracks if tracks else COCODataSet)(**tiny_det.dataset(folder, "train"), data_fields=fields)
        batches.append({**next(iter(create(kind)(dataset, 0))), "epoch_id": 0, "iter_id": 0})
    return batches


def synthetic(shapes: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Two random images of 128 x 128 with targets of `shapes`, and one of HEIGHT x WIDTH."""
    train = {"image": paddle.randn([2, 3, 128, 128]), **{name: paddle.rand(shape) for name, shape in shapes.items()}}
    size = paddle.to_tensor([[HEIGHT, WIDTH]], "float32")
    return [train, {"image": paddle.randn([1, 3, HEIGHT, WIDTH]), "im_shape": size}]


def models() -> dict[str, bool]:
    """Every model of the checkout, and whether it takes a backbone."""
    if IS_SEG:
        registered = manager.MODELS.components_dict
        return {name: "backbone" in inspect.signature(model).parameters for name, model in registered.items()}
    kinds = {name: getattr(module, "category", None) for name, module in global_config.items()}
    architectures = [name for name, kind in kinds.items() if kind == "architecture"]
    return dict.fromkeys(architectures, True)


def answer(row: dict[str, Any] | str, connection: Any) -> None:
    paddle.seed(0)
    np.random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if row == "models":
                connection.send(models())
                return
            os.environ["CYCLEMLP_PADDLEDET_REPAIRS_OFF"] = row.pop("off", "")
            (segmenter if IS_SEG else detector)(Path(folder), row, row.pop("own", False))
            connection.send("")
        except Exception as error:
            traceback.print_exc()
            connection.send(f"{type(error).__name__}: {error}")


def main() -> None:
    fork = multiprocessing.get_context("fork")
    for line in sys.stdin:
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=answer, args=(json.loads(line), sender))
        process.start()
        sender.close()
        try:
            message = receiver.recv() if receiver.poll(SECONDS) else f"no end within {SECONDS} s"
        except EOFError:
            process.join()
            message = f"the process ended with status {process.exitcode}"
        process.kill()
        process.join()
        print(json.dumps(message), file=ANSWERS, flush=True)


if __name__ == "__main__":
    main()
