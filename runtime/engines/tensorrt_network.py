"""What a parsed TensorRT network computes, and in which type: read back before anything is built."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from runtime.engines.tensorrt_library import DTYPES

# Layers that may stand between the products and the softmax of an attention.
BETWEEN = ("ELEMENTWISE", "SCALE", "CAST", "SHUFFLE", "SELECT", "UNARY", "IDENTITY")
REACH = 4


@dataclass(frozen=True)
class NetworkFacts:
    """Layers without constants; share of FLOPs by type; softmaxes between two matrix products."""

    layers: int
    flops: dict[str, float]
    attention: int


def read_back(trt: Any, network: Any) -> NetworkFacts:
    layers = list(layers_of(network))
    totals: dict[str, int] = {}
    for layer in layers:
        if operations := flops(trt, layer):
            dtype = str(layer.get_output(0).dtype).rpartition(".")[2]
            name = DTYPES.get(dtype, dtype.lower())
            totals[name] = totals.get(name, 0) + operations
    shares = {name: count / sum(totals.values()) for name, count in sorted(totals.items())}
    kinds = [kind(layer) for layer in layers]
    return NetworkFacts(len(layers) - kinds.count("CONSTANT"), shares, len(attention_softmaxes(layers)))


def layers_of(network: Any) -> Iterator[Any]:
    return (network.get_layer(i) for i in range(network.num_layers))


def kind(layer: Any) -> str:
    return str(layer.type).rpartition(".")[2]


def flops(trt: Any, layer: Any) -> int:
    """Two for every multiplication of a product or convolution; dynamic axes count once."""
    name = kind(layer)
    if name == "MATRIX_MULTIPLY":
        layer.__class__ = trt.IMatrixMultiplyLayer
        shape = layer.get_input(0).shape
        inner = shape[-2] if layer.op0 == trt.MatrixOperation.TRANSPOSE else shape[-1]
        return 2 * volume(layer.get_output(0).shape) * max(int(inner), 1)
    if name == "CONVOLUTION":
        layer.__class__ = trt.IConvolutionLayer
        channels = max(int(layer.get_input(0).shape[1]), 1) // int(layer.num_groups)
        return 2 * volume(layer.get_output(0).shape) * channels * volume(layer.kernel_size_nd)
    if name == "DECONVOLUTION":
        layer.__class__ = trt.IDeconvolutionLayer
        channels = int(layer.num_output_maps) // int(layer.num_groups)
        return 2 * volume(layer.get_input(0).shape) * channels * volume(layer.kernel_size_nd)
    return 0


def volume(shape: Any) -> int:
    return math.prod(max(length, 1) for length in shape)


def attention_softmaxes(layers: list[Any]) -> list[Any]:
    """Softmaxes that a matrix product feeds and whose result another one reads: what a fused kernel replaces."""
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    readers: dict[str, list[Any]] = {}
    for layer in layers:
        for i in range(layer.num_inputs):
            if layer.get_input(i) is not None:
                readers.setdefault(layer.get_input(i).name, []).append(layer)

    def before(layer: Any, steps: int) -> bool:
        made = [makers.get(layer.get_input(i).name) for i in range(layer.num_inputs) if layer.get_input(i) is not None]
        return any(reaches(one, steps, before) for one in made if one is not None)

    def after(layer: Any, steps: int) -> bool:
        return any(reaches(one, steps, after) for one in readers.get(layer.get_output(0).name, []))

    def reaches(layer: Any, steps: int, onward: Any) -> bool:
        if kind(layer) == "MATRIX_MULTIPLY":
            return True
        return steps > 0 and kind(layer) in BETWEEN and bool(onward(layer, steps - 1))

    softmaxes = [layer for layer in layers if kind(layer) == "SOFTMAX"]
    return [layer for layer in softmaxes if before(layer, REACH) and after(layer, REACH)]


def unfuse_attention(trt: Any, network: Any) -> None:
    """Computes every attention softmax in fp32 between casts, which no fused kernel matches.

    For drivers whose fused attention is miscompiled (TensorRT#4837, #4333).
    """
    layers = list(layers_of(network))
    for softmax in attention_softmaxes(layers):
        source, result = softmax.get_input(0), softmax.get_output(0)
        dtype = source.dtype
        if dtype == trt.float32:
            continue
        softmax.set_input(0, network.add_cast(source, trt.float32).get_output(0))
        lowered = network.add_cast(result, dtype).get_output(0)
        for layer in layers:
            for i in range(layer.num_inputs):
                if layer.get_input(i) is not None and layer.get_input(i).name == result.name:
                    layer.set_input(i, lowered)


def fused_attention(inspected: str) -> int:
    """Attention kernels in the engine inspector's JSON (fused multi-head attention is named so in every version)."""
    layers = json.loads(inspected).get("Layers", [])
    texts = [json.dumps(layer).lower() for layer in layers]
    return sum("mha" in text or "fused_attention" in text or '"attention"' in text for text in texts)
