"""Official weight files -> state dicts -> modules. Strict: every missing, unexpected or misshaped key is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

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
        prepared = module.prepare_state(prepared)
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


