"""The product's pipeline against the `pipeline_*` golden files: same stage modules, kernels and order."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from golden_case import GoldenCase, record_outputs
from golden_catseg import DROPPED_LOGIT, build_aggregator
from golden_catseg import inner_modules as head_modules
from golden_dinotxt import build_head, build_text_encoder
from golden_dinov3 import build_backbone, named_tokens
from torch import Tensor, nn

import kernels
from export.checkpoints import load_state, sub_state
from export.models.anyup import AnyUp
from export.models.dinotxt import PatchFeatures
from export.models.refinement import Correlation, Decoder, Refinement
from export.models.sam import SamGuidance
from export.stages import TokenAnyUp
from export.torch_engine import TorchEngine
from runtime.classes import select_classes
from runtime.engines.base import Tensors as EngineTensors
from runtime.geometry import Geometry
from runtime.manifest import PipelineSpec
from runtime.pipeline import Pipeline

Tensors = dict[str, Tensor]
DIAGNOSTIC = re.compile(r"(zeroshot_)?(margin|near_tie_yx|near_tie_margin)_K\d+")
LABELS = re.compile(r"(zeroshot_)?labels_(K\d+)")
TOLERANCES = (  # golden/README, first match wins
    (r"(zeroshot_)?labels_", 1e-3),  # share of differing pixels, each of them a near tie
    (r"image_normalised", 5e-5),
    (r"text_", 1e-5),
    (r"correlation_|zeroshot_logits_|scores_", 2e-5),
    (r"K\d+/", 5e-4),
    (r"", 2e-4),
)


def tolerance(output: str) -> float:
    return next(value for pattern, value in TOLERANCES if re.match(pattern, output))


def is_diagnostic(output: str) -> bool:
    """Not a result of the pipeline: margins that say where labels may differ, and the labels themselves."""
    return bool(DIAGNOSTIC.fullmatch(output) or LABELS.fullmatch(output))


def label_errors(found: Tensors, case: GoldenCase) -> dict[str, float]:
    """For every label map: the share of differing pixels, infinite if one of them is not a near tie."""
    errors = {}
    for name, expected in case.outputs.items():
        match = LABELS.fullmatch(name)
        if match is None:
            continue
        if name not in found or found[name].shape != expected.shape:
            errors[name] = float("inf")
            continue
        differs = found[name].to(torch.int64) != expected.to(torch.int64)
        share = differs.double().mean().item()
        ties = case.outputs.get(f"{match[1] or ''}near_tie_yx_{match[2]}")
        if ties is not None:
            differs[ties[:, 0].long(), ties[:, 1].long()] = False
        errors[name] = float("inf") if differs.any() else share
    return errors


class RecordingEngine:
    """Keeps the last inputs and outputs of a stage; the backbone's are kept for crops and whole image."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine, self.precision = engine, engine.precision
        self.calls: list[tuple[EngineTensors, EngineTensors]] = []

    def __call__(self, inputs: EngineTensors) -> Any:
        outputs = self.engine(inputs)
        self.calls.append((inputs, outputs))
        return outputs


class GoldenModel:
    """The product's stage modules with a golden file's weights."""

    def __init__(self, case: GoldenCase) -> None:
        config, state, name = case.config, case.state, case.name
        size, patch = config["geometry"]["image_size"], config["geometry"]["patch"]
        grid, spe = size // patch, config["spe"]
        self.backbone = build_backbone(config["backbone"])
        self.vision_head = build_head(config["vision_head"]["input_dim"], config["vision_head"])
        self.text_encoder = build_text_encoder(config["text"], config["text"]["embed_dim"])
        anyup = {key: config["anyup"][key] for key in ("qk_dim", "num_heads", "window_ratio", "kernel_size_lfu")}
        self.anyup = AnyUp(image_size=size, feature_size=grid, output_size=grid, **anyup)
        sam = {**spe["image_encoder"], "pretrained_size": spe["image_encoder"]["img_size"]}
        for official_default in ("img_size", "patch_size", "qkv_bias", "use_abs_pos", "use_rel_pos"):
            sam.pop(official_default, None)
        self.guidance = SamGuidance(
            image_size=size,
            grid=grid,
            guidance_dims=(spe["upsample1"]["out_channels"], spe["upsample2"]["out_channels"]),
            taps=spe["taps"],
            **sam,
        )
        self.aggregator = build_aggregator(config["head"])
        for module, prefix in (
            (self.backbone, "backbone."),
            (self.vision_head, "dinotxt.visual_model.head."),
            (self.text_encoder, "dinotxt.text_model."),
            (self.anyup, "anyup."),
            (self.guidance, "spe."),
            (self.aggregator, "head."),
        ):
            load_state(module, sub_state(state, prefix), name)
        self.grid = grid

    def engines(self) -> dict[str, RecordingEngine]:
        stages = {
            "backbone": (PatchFeatures(self.backbone, self.vision_head), ["features"]),
            "anyup": (TokenAnyUp(self.anyup, self.grid), ["refined"]),
            "correlation": (Correlation((self.grid, self.grid)), ["correlation"]),
            "sam_encoder": (self.guidance, ["guidance0", "guidance1", "guidance2"]),
            "refinement": (Refinement(self.aggregator), ["class_features"]),
            "decoder": (Decoder(self.aggregator), ["logits"]),
        }
        return {name: RecordingEngine(TorchEngine(*stage)) for name, stage in stages.items()}

    def spec(self, config: dict[str, Any], refinement: bool) -> PipelineSpec:
        geometry = config["geometry"]
        return PipelineSpec(
            geometry=Geometry(
                image_size=geometry["image_size"],
                crop_size=geometry["crop"],
                stride=geometry["stride"],
                patch_size=geometry["patch"],
            ),
            sam_size=geometry["image_size"],
            rope_periods=tuple(self.backbone.rope_embed.periods.tolist()),
            prefix_tokens=self.backbone.prefix_tokens,
            early_refinement="after_merge",
            refinement=refinement,
            pad_len=config["head"]["pad_len"],
            training_free_text="mean",
        )


def run(case: GoldenCase) -> Tensors:
    model = GoldenModel(case)
    photo = case.inputs["image_uint8"].numpy()
    found: Tensors = {}
    for key in sorted((key for key in case.inputs if key.startswith("token_ids_K")), key=lambda k: int(k[11:])):
        classes = key.removeprefix("token_ids_")
        text = model.text_encoder(case.inputs[key])
        found[f"text_{classes}"] = text
        found[f"text_raw_{classes}"] = model.text_encoder.features(case.inputs[key])
        found |= training_free(model, case, photo, text, classes)
        found |= refined(model, case, photo, text, classes)
    return found


def training_free(model: GoldenModel, case: GoldenCase, photo: Any, text: Tensor, classes: str) -> Tensors:
    engines = model.engines()
    frame = Pipeline(model.spec(case.config, refinement=False), engines)(photo, text.numpy())
    cosines = engines["correlation"].calls[0][1]["correlation"]
    return {
        f"zeroshot_labels_{classes}": torch.from_numpy(frame.labels),
        f"zeroshot_logits_{classes}": torch.from_numpy(cosines.mean(axis=1)),
    }


def refined(model: GoldenModel, case: GoldenCase, photo: Any, text: Tensor, classes: str) -> Tensors:
    """The whole pipeline once; every inner tensor under its golden name."""
    engines = model.engines()
    watched = {f"head/{name}": module for name, module in head_modules(model.aggregator).items()}
    watched |= {f"anyup/{name}": module for name, module in anyup_modules(model.anyup).items()}
    watched |= {"tokens": model.backbone}
    blocks = model.guidance.image_encoder.blocks
    watched |= {f"spe/block{i}_bhwc": block for i, block in enumerate(blocks)}
    with record_outputs(watched) as inner:
        frame = Pipeline(model.spec(case.config, refinement=True), engines)(photo, text.numpy())
    calls = {name: [tuple(map(as_torch, call)) for call in engine.calls] for name, engine in engines.items()}
    (_, crop_out), (full_in, full_out) = calls["backbone"]
    geometry = model.spec(case.config, refinement=True).geometry
    local = kernels.lga_merge(crop_out["features"].numpy(), None, stride=geometry.token_stride)
    merged = calls["anyup"][0][0]["features"]
    maps = (model.grid, model.grid)
    found: Tensors = {
        "image_normalised": full_in["image"],
        "crop_features": crop_out["features"],
        "full_features": full_out["features"],
        "full_backbone_patch_tokens": named_tokens(inner.pop("tokens"))["x_norm_patchtokens"],
        "lga_count": count_map(geometry),
        "lga_local": torch.from_numpy(local).T.reshape(1, -1, *maps),
        "merged": merged.transpose(1, 2).unflatten(2, maps),
        "refined": calls["anyup"][0][1]["refined"].transpose(1, 2).unflatten(2, maps),
        "spe/pos_embed_resized": model.guidance.image_encoder.pos_embed,
        **calls["sam_encoder"][0][1],
        f"labels_{classes}": torch.from_numpy(frame.labels),
        f"scores_{classes}": torch.from_numpy(np.asarray(frame.scores)),
        f"logits_{classes}": scattered_logits(calls, model.aggregator.pad_len),
        f"correlation_{classes}": calls["correlation"][0][1]["correlation"].transpose(0, 1)[None],
    }
    for name, value in inner.items():
        found |= golden_names(name, value, classes)
    return found


def as_torch(tensors: EngineTensors) -> Tensors:
    return {name: torch.from_numpy(value) for name, value in tensors.items()}


def golden_names(name: str, value: Tensor, classes: str) -> Tensors:
    """Inner tensors of the head are listed by class count, guidance projections are not."""
    name = name.removeprefix("head/") if name.startswith("head/") and "guidance_projected" not in name else name
    if name == "head/text_guidance_projected":
        return {f"{classes}/text_guidance_projected": value[None]}
    if name == "decoder1_BTxCHW":
        return {f"{classes}/decoder1_class0_CHW": value[:1]}
    if name.endswith("_BCTHW"):
        return {f"{classes}/{name}": value.transpose(0, 1)[None]}
    return {f"{classes}/{name}": value} if name == "conv1_BTxCHW" else {name: value}


def scattered_logits(calls: dict[str, Any], pad_len: int) -> Tensor:
    """Decoder chunks joined, dropped classes at the official -100."""
    cosines = calls["correlation"][0][1]["correlation"]
    logits = torch.cat([outputs["logits"] for _, outputs in calls["decoder"]])
    kept = select_classes(cosines.numpy(), pad_len)
    if kept is None:
        return logits[None]
    scattered = torch.full((len(cosines), *logits.shape[1:]), DROPPED_LOGIT)
    scattered[torch.from_numpy(kept)] = logits
    return scattered[None]


def anyup_modules(anyup: AnyUp) -> dict[str, nn.Module]:
    return {
        "q_pooled": anyup.query_encoder,
        "k_pooled": anyup.key_encoder,
        "lfu": anyup.key_features_encoder[0],
        "key_features": anyup.key_features_encoder,
        "k_aggregated": anyup.aggregation,
    }


def count_map(geometry: Geometry) -> Tensor:
    """How many crops cover each token, read off the merge kernel: crop i has the one-hot features i."""
    one_hot = np.eye(geometry.crops, dtype=np.float32)
    crops = np.repeat(one_hot[:, None], geometry.crop_grid**2, axis=1)
    merged = kernels.lga_merge(crops, None, stride=geometry.token_stride)
    return torch.from_numpy(1 / merged.max(axis=1)).reshape(geometry.grid, geometry.grid)
