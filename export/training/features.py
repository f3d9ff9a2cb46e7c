"""What the refinement head will see: features of the whole pipeline up to AnyUp, made once for every scene."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track

import kernels
from export.training.alignment import Alignment
from export.training.data import SceneSet
from export.training.early import EarlyRefinement
from runtime.cli import console
from runtime.files import atomic_file
from runtime.geometry import Geometry


@torch.inference_mode()
def refined_features(
    alignment: Alignment, early: EarlyRefinement, scenes: SceneSet, geometry: Geometry, file: Path
) -> npt.NDArray[np.float16]:
    """(N, G*G, C), kept in `file`: crops and whole image, merged as the product merges them, refined by AnyUp."""
    if file.exists():
        return load(file)
    device, rows = next(early.parameters()).device, []
    for photo in track(scenes.images, "features", console=console, disable=not console.is_terminal):
        image, crops = kernels.preprocess(
            photo, size=geometry.image_size, crop=geometry.crop_size, stride=geometry.stride
        )
        local = alignment.raw_patches(torch.from_numpy(crops).to(device)).contiguous().cpu().numpy()
        whole = alignment.raw_patches(torch.from_numpy(image).to(device)).contiguous().cpu().numpy()
        merged = kernels.lga_merge(local, whole[0], stride=geometry.token_stride)
        refined = early(torch.from_numpy(image).to(device), torch.from_numpy(merged)[None].to(device))
        rows.append(refined[0].half().cpu().numpy())
    with atomic_file(file) as unfinished:
        np.save(unfinished, np.stack(rows))
    return load(file)


def load(file: Path) -> npt.NDArray[np.float16]:
    features: npt.NDArray[np.float16] = np.load(file, mmap_mode="r")
    return features
