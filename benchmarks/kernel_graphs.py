"""The kernels' jobs as ONNX graphs, for ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

OPSET, IR = 18, 9
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def _model(nodes: Sequence[NodeProto], inputs: dict[str, int], outputs: dict[str, int], **constants: Any) -> bytes:
    """Inputs and outputs by name and element type, of any shape."""
    values = [[helper.make_tensor_value_info(*item, None) for item in end.items()] for end in (inputs, outputs)]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "job", *values, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    return bytes(model.SerializeToString())


def lga_merge(count: int, crop_grid: int, stride: int, channels: int) -> bytes:
    """crops (n, g*g, C), full (G*G, C) -> (G*G, C): pad every crop to the grid, add, weight."""
    per_axis = int(count**0.5)
    grid = crop_grid + (per_axis - 1) * stride
    covered = np.zeros((grid, grid, 1), np.float32)
    nodes = [
        helper.make_node("Reshape", ["crops", "tiles_shape"], ["tiles"]),
        helper.make_node("Split", ["tiles"], [f"tile{i}" for i in range(count)], axis=0, num_outputs=count),
        helper.make_node("Reshape", ["full", "full_shape"], ["whole"]),
    ]
    pads: dict[str, Any] = {}
    for i in range(count):
        y, x = i // per_axis * stride, i % per_axis * stride
        covered[y : y + crop_grid, x : x + crop_grid] += 1
        pads[f"pad{i}"] = np.int64([0, y, x, 0, 0, grid - crop_grid - y, grid - crop_grid - x, 0])
        nodes.append(helper.make_node("Pad", [f"tile{i}", f"pad{i}"], [f"padded{i}"]))
    nodes += [
        helper.make_node("Sum", [f"padded{i}" for i in range(count)], ["total"]),
        helper.make_node("Mul", ["total", "share"], ["local"]),
        helper.make_node("Mul", ["whole", "half"], ["global"]),
        helper.make_node("Add", ["local", "global"], ["both"]),
        helper.make_node("Reshape", ["both", "merged_shape"], ["merged"]),
    ]
    return _model(
        nodes,
        {"crops": TensorProto.FLOAT, "full": TensorProto.FLOAT},
        {"merged": TensorProto.FLOAT},
        tiles_shape=np.int64([count, crop_grid, crop_grid, channels]),
        full_shape=np.int64([1, grid, grid, channels]),
        merged_shape=np.int64([grid * grid, channels]),
        share=np.float32(0.5) / covered,
        half=np.float32(0.5),
        **pads,
    )


def upsample_argmax(classes: int, scale: float) -> bytes:
    """logits (1, K, h, w) -> labels (1, H, W)."""
    nodes = [
        helper.make_node(
            "Resize",
            ["logits", "", "scales"],
            ["upsampled"],
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        ),
        helper.make_node("ArgMax", ["upsampled"], ["labels"], axis=1, keepdims=0),
    ]
    scales = np.float32([1, 1, scale, scale])
    return _model(nodes, {"logits": TensorProto.FLOAT}, {"labels": TensorProto.INT64}, scales=scales)


def preprocess(size: int, crop: int, offsets: Sequence[tuple[int, int]]) -> bytes:
    """photo (H, W, 3) uint8 -> image (1, 3, S, S) and crops (n, 3, c, c)."""
    nodes = [
        helper.make_node("Cast", ["photo"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[2, 0, 1]),
        helper.make_node("Unsqueeze", ["planes", "zero"], ["batch"]),
        helper.make_node(
            "Resize",
            ["batch", "", "", "sizes"],
            ["resized"],
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        ),
        helper.make_node("Mul", ["resized", "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["image"]),
    ]
    ends: dict[str, Any] = {}
    for i, (y, x) in enumerate(offsets):
        ends |= {f"begin{i}": np.int64([y, x]), f"end{i}": np.int64([y + crop, x + crop])}
        nodes.append(helper.make_node("Slice", ["image", f"begin{i}", f"end{i}", "axes"], [f"crop{i}"]))
    nodes.append(helper.make_node("Concat", [f"crop{i}" for i in range(len(offsets))], ["crops"], axis=0))
    return _model(
        nodes,
        {"photo": TensorProto.UINT8},
        {"image": TensorProto.FLOAT, "crops": TensorProto.FLOAT},
        zero=np.int64([0]),
        sizes=np.int64([1, 3, size, size]),
        gain=(1 / (255 * STD)).reshape(3, 1, 1),
        offset=(-MEAN / STD).reshape(3, 1, 1),
        axes=np.int64([2, 3]),
        **ends,
    )
