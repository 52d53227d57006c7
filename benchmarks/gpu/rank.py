"""One of two launched processes: gradients of an image each, averaged by DataParallel, against those of both images."""

from __future__ import annotations

import sys
from pathlib import Path


def main(device: str, variant: str, result: str) -> None:
    import numpy as np
    import paddle

    from classification.distributed import join
    from cyclemlp_backbones import build_classifier
    from tests.reference import fill_parameters, reference_input, relative_error

    world = join("auto" if device == "gpu" else "cpu")
    images = paddle.to_tensor(reference_input((2, 3, 64, 64)))
    model = build_classifier(variant, num_classes=10, drop_path_rate=0.0)
    fill_parameters(model)

    def gradients(network: paddle.nn.Layer, part: paddle.Tensor) -> np.ndarray:
        model.clear_gradients()
        (network(part) ** 2).mean().backward()
        return np.concatenate([parameter.grad.numpy().ravel() for parameter in model.parameters()])

    together = gradients(model, images)
    averaged = gradients(paddle.DataParallel(model), images[world.rank : world.rank + 1])
    errors = world.gather(relative_error(averaged, together))
    if world.is_main:
        Path(result).write_text(str(max(errors)))
    world.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
