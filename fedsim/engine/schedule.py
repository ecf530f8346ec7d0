"""Cutting a cohort into blocks."""

from __future__ import annotations

MAX_BLOCKS = 32
"""Blocks a cohort is cut into at most: enough that the last ones even out over many workers."""


MIN_BLOCK_WORK = 2.5e6
"""Training samples x parameters below which a block is not worth its round trip."""


SHARD = 1024
"""Rows of the global test set that are scored together."""


def block_length(cohort: int, work: float, group_size: int = 1) -> int:
    """Return how many clients a block has; follows from the experiment, never from the workers.

    `work` is training samples x parameters of the whole cohort. Where clients are trained
    `group_size` at a time a block is a whole number of groups.
    """
    count = max(1, min(MAX_BLOCKS, cohort, int(work / MIN_BLOCK_WORK)))
    length = -(-cohort // count)
    return -(-length // group_size) * group_size
