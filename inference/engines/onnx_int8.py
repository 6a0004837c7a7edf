"""Quantises an exported graph to int8, and leaves those matrix products alone that suffer most from it.

Which those are is measured: each product is quantised alone and the graph compared with the float32 one. Then as few as
possible, the most sensitive first, stay float32 for the whole to reach the fidelity that is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PRODUCTS = ("MatMul", "Attention")

Report = Callable[[str], None]
"""Takes one line of progress."""

Fidelity = Callable[[Path], float]
"""How faithful a graph is: 1.0 where it is as the float32 one."""


def quantise(graph: Path, target: Path, *, fidelity: Fidelity, least: float, report: Report) -> int:
    """Write the int8 graph with the fewest products in float32 whose fidelity is ``least``; all of them at worst.

    Args:
        graph: the float32 graph.
        target: where to write.
        fidelity: measures a graph.
        least: to reach.
        report: told of progress.

    Returns:
        how many products stayed float32.
    """
    products = _products(graph)
    lost: dict[str, float] = {}
    for number, product in enumerate(products, 1):
        _write(graph, target, left_alone=[each for each in products if each != product])
        lost[product] = fidelity(target)
        if number % 12 == 0:
            report(f"int8: {number} of {len(products)} matrix products tried alone")
    ranked = sorted(products, key=lambda product: lost[product])
    few, many = 0, len(ranked)
    while few < many:
        middle = (few + many) // 2
        _write(graph, target, left_alone=ranked[:middle])
        if fidelity(target) >= least:
            many = middle
        else:
            few = middle + 1
    _write(graph, target, left_alone=ranked[:few])
    return few


def _products(graph: Path) -> list[str]:
    """The names of the matrix products that have weights."""
    import onnx

    model = onnx.load(str(graph))
    weights = {each.name for each in model.graph.initializer}
    return [
        node.name for node in model.graph.node if node.op_type in _PRODUCTS and weights.intersection(node.input[1:2])
    ]


def _write(graph: Path, target: Path, *, left_alone: Sequence[str]) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options: dict[str, Any] = {"DefaultTensorType": onnx.TensorProto.FLOAT}  # fused operators state no type
    with _without_advice():
        quantize_dynamic(
            str(graph),
            str(target),
            op_types_to_quantize=list(_PRODUCTS),
            nodes_to_exclude=list(left_alone),
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options=options,
        )


@contextmanager
def _without_advice() -> Iterator[None]:
    """The library advises through the root logger, each time, to do what was done already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
