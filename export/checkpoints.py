"""Official weight files -> state dicts -> modules. Strict: every missing, unexpected or misshaped key is named."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from export.presets import ModelConfig
from runtime.bundle import sha256
from runtime.errors import WeightsError


@runtime_checkable
class PreparesState(Protocol):
    """A module whose own parameters differ from the official file in a way it knows how to translate."""

    def prepare_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official state dict -> this module's state dict (fold, resize, drop the known harmless keys).

        Keys that are missing from `state` stay missing, so that `load_state` can name them.
        """
        ...


def load_state(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads `state` (official keys) into `module`, in float32.

    Raises:
        WeightsError: keys are missing, unexpected, or of another shape; the message names them and `source`.
    """
    prepared = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    if isinstance(module, PreparesState):
        try:
            prepared = module.prepare_state(prepared)
        except WeightsError as error:
            raise WeightsError(f"{source}: {error}") from None
    expected = module.state_dict()
    problems = [
        _named("missing", [key for key in expected if key not in prepared]),
        _named("unexpected", [key for key in prepared if key not in expected]),
        _named(
            "wrong shape",
            [
                f"{key} is {tuple(prepared[key].shape)}, expected {tuple(value.shape)}"
                for key, value in expected.items()
                if key in prepared and prepared[key].shape != value.shape
            ],
        ),
    ]
    if found := "; ".join(problem for problem in problems if problem):
        raise WeightsError(f"{source}: not the weights of {type(module).__name__}: {found}")
    module.load_state_dict({key: value.contiguous() for key, value in prepared.items()}, assign=True)
    module.requires_grad_(False)
    module.eval()


def _named(problem: str, items: list[str], shown: int = 5) -> str:
    if not items:
        return ""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return f"{problem}: {', '.join(items[:shown])}{more}"


def sub_state(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under `prefix`, with the prefix removed."""
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class OfficialFile:
    """One checkpoint: file name patterns (the first that matches wins) and what of it nobody needs."""

    patterns: tuple[str, ...]
    harmless: tuple[str, ...] = ()


def official_files(config: ModelConfig) -> dict[str, OfficialFile]:
    arch = config.backbone.arch
    return {
        "backbone": OfficialFile((f"dinov3_{arch}_pretrain_lvd1689m*", f"dinov3_{arch}_pretrain_tabletop*")),
        "dinotxt": OfficialFile((f"dinov3_{arch}_dinotxt_vision_head_and_text_encoder*",), ("logit_scale",)),
        "anyup": OfficialFile(("anyup_multi_backbone*", "anyup_paper*", "anyup_*")),
        "sam": OfficialFile(
            (f"sam_{config.sam.arch}_*",), ("prompt_encoder.", "mask_decoder.", "pixel_mean", "pixel_std")
        ),
        "refinement": OfficialFile((f"dinov3seg_{config.name}_refinement*",)),
    }


# Every part of the model: its file, and its prefixes there -> prefixes in our module.
PARTS = {
    "backbone": [("backbone", "", "")],
    "vision_head": [("dinotxt", "visual_model.head.", "")],
    "text_encoder": [("dinotxt", "text_model.", "")],
    "anyup": [("anyup", "", "")],
    "guidance": [
        ("sam", "image_encoder.", "image_encoder."),
        ("refinement", "spe.upsample1.", "upsample1."),
        ("refinement", "spe.upsample2.", "upsample2."),
    ],
    "head": [("refinement", "head.", "")],
}


class CheckpointFolder:
    """The official weight files in one folder, found by their official names.

    Raises:
        WeightsError: a file is missing, ambiguous or unreadable, or holds keys that belong to no part.
    """

    random = False

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        if not folder.is_dir():
            raise WeightsError(f"--weights {folder}: no such folder; give the folder that holds the checkpoints")
        self._folder = folder
        self._files = official_files(config)
        self._states: dict[str, dict[str, Tensor]] = {}
        self._paths: dict[str, Path] = {}

    def fill(self, module: nn.Module, part: str) -> None:
        """Loads the weights of one part of `PARTS` into `module`."""
        state: dict[str, Tensor] = {}
        for file, prefix, ours in PARTS[part]:
            state |= {ours + key: value for key, value in sub_state(self._state(file), prefix).items()}
        sources = dict.fromkeys(self._paths[file].name for file, _, _ in PARTS[part])
        load_state(module, state, " + ".join(sources))

    def checksums(self) -> dict[str, str]:
        """sha256 of every file that was used."""
        return {path.name: sha256(path) for path in self._paths.values()}

    def _state(self, file: str) -> dict[str, Tensor]:
        if file not in self._states:
            self._paths[file] = self._find(file)
            state = read_state(self._paths[file])
            self._states[file] = self._drop_harmless(file, state)
        return self._states[file]

    def _find(self, file: str) -> Path:
        for pattern in self._files[file].patterns:
            found = [path for path in sorted(self._folder.glob(pattern)) if path.suffix in (".pth", ".safetensors")]
            if len(found) > 1:
                names = ", ".join(path.name for path in found)
                raise WeightsError(f"{self._folder}: {len(found)} files match {pattern}: {names}; keep one")
            if found:
                return found[0]
        expected = self._files[file].patterns[0]
        advice = (
            "; without refinement weights choose --refinement none or --random-weights" if file == "refinement" else ""
        )
        raise WeightsError(f"{self._folder}: no {expected}.pth or .safetensors for the {file} weights{advice}")

    def _drop_harmless(self, file: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
        state = {key: value for key, value in state.items() if not key.startswith(self._files[file].harmless)}
        prefixes = tuple(prefix for parts in PARTS.values() for name, prefix, _ in parts if name == file)
        if strange := [key for key in state if not key.startswith(prefixes)]:
            raise WeightsError(f"{self._paths[file]}: {_named('unexpected', strange)}")
        return state


def read_state(path: Path) -> dict[str, Tensor]:
    """A flat state dict from a .pth (no code is run) or .safetensors file, mapped rather than read."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        # The format before torch 1.6, a bare pickle, cannot be mapped.
        state: dict[str, Tensor] = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError:  # torch's own message advises to run the code
        raise WeightsError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds objects that could run code "
            "and are never loaded; download the official file again"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise WeightsError(f"{path} cannot be read as a checkpoint ({reason}); download it again") from None
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise WeightsError(f"{path} cannot be read as safetensors ({error}); download it again") from None
    flat = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not flat:
        raise WeightsError(f"{path} is not a flat state dict of tensors; expected the official file")
    return state
