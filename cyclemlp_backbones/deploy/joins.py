"""What is put into an ONNX graph that paddle2onnx wrote: non-maximum suppression, RoiAlign over a batch, epsilons."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from graphlib import TopologicalSorter
from typing import Any, NamedTuple


class Join(NamedTuple):
    """A suppression: of boxes that overlap by more than `threshold`, for scores above `least`, `most` at the most."""

    threshold: float
    least: float
    most: int


ALIGN = Join(0.0, 0.0, 0)
"""In the place of one: the next RoiAlign, which is told its boxes' images."""


def join(graph: Any, outputs: int, joins: Sequence[Join]) -> None:
    """Turns the graph's outputs after the first `outputs`, and its last inputs, into nodes between them.

    A suppression takes two outputs (boxes [B, R, 4], scores [B, C, R]) and gives one input, 1 where a score is kept; a
    RoiAlign takes one.
    """
    suppressions = sum(one is not ALIGN for one in joins)
    asked = iter([output.name for output in graph.output[outputs:]])
    kept = iter([tensor.name for tensor in graph.input[len(graph.input) - suppressions :]])
    aligns = iter([node for node in graph.node if node.op_type == "RoiAlign"])
    for number, one in enumerate(joins):
        if one is ALIGN:
            next(aligns).input[2] = next(asked)
        else:
            graph.node.extend(_suppression(one, f"suppression.{number}", next(asked), next(asked), next(kept)))
    del graph.output[outputs:], graph.input[len(graph.input) - suppressions :]
    nodes = list(graph.node)
    makers = {name: number for number, node in enumerate(nodes) for name in node.output}
    needs = {number: {makers[name] for name in node.input if name in makers} for number, node in enumerate(nodes)}
    del graph.node[:]
    graph.node.extend(nodes[number] for number in TopologicalSorter(needs).static_order())


def mend_epsilons(graph: Any, epsilons: Collection[float]) -> None:
    """Gives InstanceNormalization the epsilon of the network's group norms, in whose place paddle2onnx writes 0.

    ValueError where they have several.
    """
    norms = [node for node in graph.node if node.op_type == "InstanceNormalization"]
    if norms and len(epsilons) != 1:
        raise ValueError(f"group norms with the epsilons {sorted(epsilons)} have no ONNX export, one for all has")
    for node in norms:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                (attribute.f,) = epsilons


def _suppression(one: Join, name: str, boxes: str, scores: str, kept: str) -> Iterator[Any]:
    import onnx
    from onnx import TensorProto, helper

    def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> Any:
        return helper.make_node(kind, inputs, [output], name=f"{output}.node", **attributes)

    most, threshold, least, chosen, zeros, ones, shape, count = (f"{name}.{number}" for number in range(8))
    for output, dtype, value in (
        (most, TensorProto.INT64, one.most),
        (threshold, TensorProto.FLOAT, one.threshold),
        (least, TensorProto.FLOAT, one.least),
    ):
        yield node("Constant", [], output, value=helper.make_tensor(output, dtype, [1], [value]))
    yield node("NonMaxSuppression", [boxes, scores, most, threshold, least], chosen)
    yield node("Shape", [scores], shape)
    yield node("Shape", [chosen], count, start=0, end=1)
    yield node("ConstantOfShape", [shape], zeros)
    yield node("ConstantOfShape", [count], ones, value=onnx.helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]))
    yield node("ScatterND", [zeros, chosen, ones], kept)
