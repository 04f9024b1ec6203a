"""Compiled loops of the planner on a CPU: what would be a dozen small tensor operations each.

All work on numpy views of tensors, single-threaded, without the interpreter's lock.
"""

from __future__ import annotations

import numpy as np
from numba import njit

UNSIGNED_ZERO = 128  # the unsigned byte that stands for 0
FAST = {"reassoc", "contract", "arcp", "nsz"}  # lets sums be vectorised; NaN and infinity keep their meaning


@njit(cache=True, nogil=True, fastmath=FAST)
def quantize_rows(x: np.ndarray, out: np.ndarray, scale: np.ndarray) -> None:  # pragma: no cover (compiled)
    """Rounds each row of ``x`` [n, in] to ``scale * (out - 128)``, with ``out`` [n, in] uint8 and ``scale`` [n]."""
    for i in range(x.shape[0]):
        most = np.float32(0.0)
        for j in range(x.shape[1]):
            most = max(most, abs(x[i, j]))
        step = most / np.float32(127.0) + np.float32(1e-30)
        scale[i] = step
        inverse = np.float32(1.0) / step
        for j in range(x.shape[1]):
            out[i, j] = np.uint8(np.int32(x[i, j] * inverse + np.float32(UNSIGNED_ZERO + 0.5)))


@njit(cache=True, nogil=True, fastmath=FAST)
def rescale(product: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> None:  # pragma: no cover (compiled)
    """``product`` [n, out] becomes ``product * scale + bias``, with ``scale`` [n] and ``bias`` [out]."""
    for i in range(product.shape[0]):
        for j in range(product.shape[1]):
            product[i, j] = product[i, j] * scale[i] + bias[j]


@njit(cache=True, nogil=True, fastmath=FAST)
def rescale_and_add(
    product: np.ndarray, scale: np.ndarray, bias: np.ndarray, residual: np.ndarray
) -> None:  # pragma: no cover (compiled)
    """As `rescale`, with ``residual`` [n, out] added."""
    for i in range(product.shape[0]):
        for j in range(product.shape[1]):
            product[i, j] = product[i, j] * scale[i] + bias[j] + residual[i, j]


@njit(cache=True, nogil=True)
def trace(
    parents: np.ndarray, node: int, first: np.ndarray, root_tokens: int, slots: np.ndarray, count: np.ndarray
) -> None:  # pragma: no cover (compiled)
    """Lists the slots of the last tokens before and in ``node``, the newest first.

    Slots 0..root_tokens - 1 hold the context; node n > 0 has slot ``root_tokens + 2 (n - 1)`` for its action and the
    next one for its state.

    Args:
        parents: [B, N] int32, the node above each node.
        node: The newest node, above 0, in every tree.
        first: [B] int64, the first slot of the context that is not padding.
        root_tokens: Slots of the context.
        slots: [B, most] int32, written; its width bounds the list.
        count: [B] int32, written: how many there are.
    """
    most = slots.shape[1]
    for b in range(slots.shape[0]):
        n, at = 0, node
        while at > 0 and n < most:
            slots[b, n] = root_tokens + 2 * at - 1
            n += 1
            if n < most:
                slots[b, n] = root_tokens + 2 * at - 2
                n += 1
            at = parents[b, at]
        slot = root_tokens - 1
        while slot >= first[b] and n < most:
            slots[b, n] = slot
            n += 1
            slot -= 1
        count[b] = n


@njit(cache=True, nogil=True, fastmath=FAST)
def attend(
    qkv: np.ndarray,
    rotation: np.ndarray,
    position: np.ndarray,
    pool: np.ndarray,
    slots: np.ndarray,
    count: np.ndarray,
    begin: int,
    window: int,
    out: np.ndarray,
) -> None:  # pragma: no cover (compiled)
    """One new token in every tree: rotates its query and key, stores key and value, and attends.

    Args:
        qkv: [B, 3, H, d] float32; the query is rotated in place.
        rotation: [positions, 2, d] float32, cosines and signed sines (see `transformer.Rotary`).
        position: [B] int32, of the token.
        pool: [B, slots, 2, H, d] float32, keys and values; the token's own slot is written.
        slots: [B, most] int32, the newest first, from `trace`.
        count: [B] int32, how many of them there are.
        begin: Index into ``slots`` of the token's own slot; those before it are newer and not seen.
        window: How many tokens it sees at most, itself included.
        out: [B, H, d] float32, written.
    """
    heads, dim = out.shape[1], out.shape[2]
    half = dim // 2
    score = np.empty(window, np.float32)
    turned = np.empty(dim, np.float32)
    scale = np.float32(1.0 / np.sqrt(dim))
    for b in range(out.shape[0]):
        cos, sin = rotation[position[b], 0], rotation[position[b], 1]
        own, n = slots[b, begin], min(count[b] - begin, window)
        for h in range(heads):
            query, key, kept = qkv[b, 0, h], qkv[b, 1, h], pool[b, own, 0, h]
            for i in range(half):
                kept[i] = key[i] * cos[i] + key[i + half] * sin[i]
                kept[i + half] = key[i + half] * cos[i + half] + key[i] * sin[i + half]
                turned[i] = (query[i] * cos[i] + query[i + half] * sin[i]) * scale
                turned[i + half] = (query[i + half] * cos[i + half] + query[i] * sin[i + half]) * scale
            pool[b, own, 1, h] = qkv[b, 2, h]
            best = np.float32(-np.inf)
            for j in range(n):
                seen = pool[b, slots[b, begin + j], 0, h]
                dot = np.float32(0.0)
                for i in range(dim):
                    dot += turned[i] * seen[i]
                score[j] = dot
                best = max(best, dot)
            mass = np.float32(0.0)
            for j in range(n):
                score[j] = np.exp(score[j] - best)
                mass += score[j]
            result = out[b, h]
            result[:] = np.float32(0.0)
            for j in range(n):
                value, weight = pool[b, slots[b, begin + j], 1, h], score[j] / mass
                for i in range(dim):
                    result[i] += weight * value[i]


@njit(cache=True, nogil=True)
def best_known(
    logits: np.ndarray, known: np.ndarray, ids: np.ndarray, probs: np.ndarray
) -> None:  # pragma: no cover (compiled)
    """The K known actions of highest logit, best first, the lowest id among equals, and their softmax.

    Args:
        logits: [B, V] float32.
        known: [B, V] bool.
        ids: [B, K] int32, written; -1 where a tree knows fewer.
        probs: [B, K] float32, written; 0 there.
    """
    most = ids.shape[1]
    for b in range(ids.shape[0]):
        n = 0
        for v in range(logits.shape[1]):
            logit = logits[b, v]
            if not known[b, v] or (n == most and not logit > probs[b, most - 1]):
                continue
            at = min(n, most - 1)
            while at > 0 and probs[b, at - 1] < logit:
                probs[b, at], ids[b, at] = probs[b, at - 1], ids[b, at - 1]
                at -= 1
            probs[b, at], ids[b, at] = logit, v
            n = min(n + 1, most)
        mass = np.float32(0.0)
        best = probs[b, 0]
        for k in range(n):
            probs[b, k] = np.exp(probs[b, k] - best)
            mass += probs[b, k]
        for k in range(n):
            probs[b, k] /= mass
        ids[b, n:] = -1
        probs[b, n:] = np.float32(0.0)


@njit(cache=True, nogil=True, fastmath=FAST)
def decode(logits: np.ndarray, limit: int, out: np.ndarray) -> None:  # pragma: no cover (compiled)
    """`scalar.Support.decode` of ``logits`` [n, bins] float32 into ``out`` [n] float32."""
    for row in range(out.shape[0]):
        best = logits[row].max()
        mass, mean = 0.0, 0.0
        for i in range(logits.shape[1]):
            weight = np.exp(logits[row, i] - best)
            mass += weight
            mean += weight * (i - limit)
        mean /= mass
        shifted = abs(mean) + 1.001
        root = 2 * shifted / (np.sqrt(1 + 0.004 * shifted) + 1)
        out[row] = np.sign(mean) * (root * root - 1)
