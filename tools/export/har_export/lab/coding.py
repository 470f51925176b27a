"""Entropy coding of a model file, for transport. At rest it stays as it is: a board opens what was verified.

LZMA of the standard library. Deep Compression (Han et al., ICLR 2016) codes weights by Huffman; `huffman_bytes` tells
how long that would be. On weights LZMA is within a few per cent of it, it is shorter where most weights are zero, and
it needs no code of our own on a board.
"""

import heapq
import lzma
from collections import Counter
from collections.abc import Sequence

_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 22, "lc": 0, "lp": 0, "pb": 0}]
"""Weights are numbers without a context: no bits of the byte before (lc), nor of the position (lp, pb). A board needs
no more memory to decode than the 4 MiB that are looked back on."""


def encode(data: bytes) -> bytes:
    """Return `data` coded, with a check sum in it."""
    return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=_FILTERS)


def decode(coded: bytes) -> bytes:
    """Return what was coded.

    Raises:
        lzma.LZMAError: it is damaged.
    """
    return lzma.decompress(coded, format=lzma.FORMAT_XZ)


def huffman_bytes(data: bytes) -> int:
    """Return how many bytes an optimal Huffman code of the single bytes of `data` takes, without its table."""
    counts = list(Counter(data).values())
    return -(-sum(n * length for n, length in zip(counts, huffman_lengths(counts), strict=True)) // 8)


def huffman_lengths(counts: Sequence[int]) -> list[int]:
    """Return the bits of each symbol in an optimal Huffman code for symbols that occur so often."""
    if len(counts) == 1:
        return [1]
    lengths = [0] * len(counts)
    heap = [(n, i, [i]) for i, n in enumerate(counts)]
    heapq.heapify(heap)
    while len(heap) > 1:
        (n, i, one), (m, _, other) = heapq.heappop(heap), heapq.heappop(heap)
        for symbol in one + other:
            lengths[symbol] += 1
        heapq.heappush(heap, (n + m, i, one + other))
    return lengths
