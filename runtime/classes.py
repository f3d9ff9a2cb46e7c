"""Which classes go through refinement."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError
from runtime.manifest import PipelineSpec

Cosines = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def refined_classes(correlation: Cosines, pad_len: int, shortlist: int) -> Indices | None:
    """The classes that refinement sees: those on the shortlist, of them the `pad_len` strongest.

    Args:
        correlation: (K, P, G, G) cosines.
        pad_len, shortlist: 0 for no limit.

    Returns:
        Class indices in ascending order, or None for all of them.
    """
    listed = shortlist_classes(correlation, shortlist)
    if listed is None:
        return select_classes(correlation, pad_len)
    strongest = select_classes(correlation[listed], pad_len)
    return listed if strongest is None else listed[strongest]


def shortlist_classes(correlation: Cosines, most: int) -> Indices | None:
    """The classes that are among the `most` with the largest cosine at one pixel at least.

    At a pixel the largest of a class's P cosines counts, as in `select_classes`. Classes that are equal to the last
    of the `most` are on the list too, so the result does not depend on their order.

    Args:
        correlation: (K, P, G, G) cosines.
        most: 0 for no limit.

    Returns:
        Class indices in ascending order, or None when all classes are on the list.
    """
    classes = len(correlation)
    if most == 0 or classes <= most:
        return None
    by_pixel = np.ascontiguousarray(correlation.max(axis=1).reshape(classes, -1).T)
    last = np.partition(by_pixel, classes - most, axis=1)[:, classes - most]
    listed = np.flatnonzero((~(by_pixel < last[:, None])).any(axis=0))  # no number: all stay
    return None if len(listed) == classes else listed


def select_classes(correlation: Cosines, limit: int) -> Indices | None:
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


def check_shortlist(shortlist: int, spec: PipelineSpec) -> None:
    """Raises InputError for a length that cannot be, or where there is no refinement to save."""
    if shortlist < 0:
        raise InputError(f"shortlist is {shortlist}; expected 0 (off) or the number of classes that a pixel may list")
    if shortlist and not spec.refinement:
        raise InputError(
            f"shortlist is {shortlist}, but this bundle was built without refinement, which is what a shortlist "
            "shortens; expected 0"
        )
