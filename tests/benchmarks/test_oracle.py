import numpy as np
import paddle

from benchmarks.oracle import DeformCycleFC, deform_classifier
from cyclemlp_backbones import build_classifier, fast_cpu


def test_the_network_on_deform_conv2d_has_none_of_our_forms_and_the_same_logits():
    paddle.seed(0)
    deform, ours = deform_classifier("b0", num_classes=5), build_classifier("b0", num_classes=5, drop_path_rate=0.0)
    assert sum(type(layer) is DeformCycleFC for layer in deform.sublayers()) == 16
    assert not any(type(layer).__module__ == fast_cpu.__name__ for layer in deform.sublayers())
    for parameter in ours.parameters():
        parameter.set_value(paddle.randn(parameter.shape) * 0.2)
    deform.set_state_dict(ours.state_dict())
    image = paddle.randn([2, 3, 45, 64])
    np.testing.assert_allclose(deform(image).numpy(), ours(image).numpy(), rtol=0, atol=1e-5)
