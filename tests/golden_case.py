"""One golden file: reference weights, inputs and outputs written by the official code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn


@dataclass(frozen=True)
class GoldenCase:
    """`state/*` uses official keys; `config` holds the official constructor's arguments."""

    name: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> GoldenCase:
        groups: dict[str, dict[str, Tensor]] = {"state": {}, "input": {}, "output": {}}
        with safe_open(path, framework="pt") as file:
            config = json.loads(file.metadata()["config"])
            for key in file.keys():  # noqa: SIM118 (a safetensors handle, not a dict)
                group, _, name = key.partition("/")
                groups[group][name] = file.get_tensor(key)
        return cls(path.stem, config, groups["state"], groups["input"], groups["output"])


@contextmanager
def record_outputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collects what the named modules return while the block runs."""
    outputs: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, module in modules.items():

            def keep(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
                outputs[name] = output

            hooks.callback(module.register_forward_hook(keep).remove)
        yield outputs
