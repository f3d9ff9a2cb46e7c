"""Which classes go through refinement."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def select_classes(correlation: npt.NDArray[np.float32], limit: int) -> npt.NDArray[np.int64] | None:
    """The `limit` classes with the largest cosine at any pixel and prompt, in ascending order.

    CAT-Seg refines at most `pad_len` classes; the others get the logit -100. In ascending order a tie in the
    logits still goes to the lowest class.

    Args:
        correlation: (K, P, G, G) cosines.
        limit: `pad_len`; 0 for no limit.

    Returns:
        (limit,) class indices, or None when all classes fit.

    Source: CAT-Seg `Aggregator.forward`, MODEL_SPEC section (e) 6.
    """
    classes = len(correlation)
    if limit == 0 or classes <= limit:
        return None
    strongest = correlation.reshape(classes, -1).max(axis=1)
    return np.sort(np.argpartition(-strongest, limit - 1)[:limit])
