"""How items become batches: by count and by bytes, whichever is reached first."""

from collections.abc import Sequence


def partition(sizes: Sequence[int], max_items: int, max_bytes: int) -> list[tuple[int, int]]:
    """Cut a sequence of items into consecutive batches.

    Args:
        sizes: The items' sizes in bytes, in plan order.
        max_items: Most items of a batch.
        max_bytes: Most bytes of a batch; a single item that is larger is a batch of its own.

    Returns:
        ``(start, end)`` of each batch, ``end`` exclusive; together they cover every item once, in order.
    """
    batches: list[tuple[int, int]] = []
    start, total = 0, 0
    for index, size in enumerate(sizes):
        if index > start and (index - start >= max_items or total + size > max_bytes):
            batches.append((start, index))
            start, total = index, 0
        total += size
    if start < len(sizes):
        batches.append((start, len(sizes)))
    return batches
