"""Open-vocabulary segmentation from a bundle, without PyTorch.

>>> from runtime import Segmenter
>>> segmenter = Segmenter.load("bundles/tiny", classes=["wall", "floor", "red mug"])
>>> result = segmenter(image)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.segmentation import Segmentation
    from runtime.segmenter import Segmenter

__all__ = ["Segmentation", "Segmenter"]


def __getattr__(name: str) -> Any:
    # Loaded when first used: commands that only read a manifest or print help start without the kernels.
    if name == "Segmenter":
        from runtime.segmenter import Segmenter

        return Segmenter
    if name == "Segmentation":
        from runtime.segmentation import Segmentation

        return Segmentation
    raise AttributeError(f"module 'runtime' has no attribute {name!r}")
