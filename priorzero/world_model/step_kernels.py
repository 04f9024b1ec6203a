"""The small operations of an imagined step on a GPU, fused into a kernel between two matrix products each.

Needs Triton, which comes with torch for CUDA: imported only where it is asked for. All tensors are contiguous; one
program works on one tree, or on one head of one tree. Sums are taken in float32, what is kept is rounded to the
precision of the network, as in `device_step`.
"""

from __future__ import annotations

import triton  # ty: ignore[import-not-found]
import triton.language as tl  # ty: ignore[import-not-found]


@triton.jit
def _normalised(x, inside, weight, bias, width: tl.constexpr, eps: tl.constexpr):  # pragma: no cover (compiled)
    """Layer norm of a float32 tile that is 0 where not ``inside``."""
    centred = tl.where(inside, x - tl.sum(x) / width, 0.0)
    return centred / tl.sqrt(tl.sum(centred * centred) / width + eps) * weight + bias


@triton.jit
def enter(
    parent, action, node, seen, position, slot_position, tokens, weight, bias, x, normed, node_stride,
    root_tokens: tl.constexpr, nodes: tl.constexpr, slots: tl.constexpr, width: tl.constexpr, eps: tl.constexpr,
    block_slots: tl.constexpr, block: tl.constexpr,
):  # fmt: skip  # pragma: no cover (compiled)
    """Makes room for a node, and starts with the token of its action: ``x`` and its layer norm [B, D]."""
    row = tl.program_id(0).to(tl.int64)
    new, up = tl.load(node + row * node_stride), tl.load(parent + row)
    at = tl.load(position + row * nodes + up) + 1
    first = root_tokens + 2 * (new - 1)
    slot = tl.arange(0, block_slots)
    inside = slot < slots
    old = tl.load(seen + (row * nodes + up) * slots + slot, mask=inside, other=0)
    own = (slot == first) | (slot == first + 1)
    tl.store(seen + (row * nodes + new) * slots + slot, ((old != 0) | own).to(tl.uint8), mask=inside)
    tl.store(slot_position + row * slots + first, at)
    tl.store(slot_position + row * slots + first + 1, at + 1)
    tl.store(position + row * nodes + new, at + 1)
    column = tl.arange(0, block)
    within = column < width
    which = tl.maximum(tl.load(action + row), 0).to(tl.int64)
    token = tl.load(tokens + which * width + column, mask=within, other=0.0)
    tl.store(x + row * width + column, token, mask=within)
    gain = tl.load(weight + column, mask=within, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=within, other=0.0).to(tl.float32)
    tl.store(
        normed + row * width + column, _normalised(token.to(tl.float32), within, gain, shift, width, eps), mask=within
    )


@triton.jit
def add_and_norm(
    x, delta, weight, bias, normed, width: tl.constexpr, eps: tl.constexpr, block: tl.constexpr
):  # pragma: no cover (compiled)
    """``x`` [B, D] becomes ``x + delta``; ``normed`` its layer norm."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    within = column < width
    at = row * width + column
    old = tl.load(x + at, mask=within, other=0.0)
    total = (old.to(tl.float32) + tl.load(delta + at, mask=within, other=0.0).to(tl.float32)).to(old.dtype)
    tl.store(x + at, total, mask=within)
    gain = tl.load(weight + column, mask=within, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=within, other=0.0).to(tl.float32)
    tl.store(normed + at, _normalised(total.to(tl.float32), within, gain, shift, width, eps), mask=within)


@triton.jit
def reach(
    following, latent_weight, latent_bias, weight, bias, x, normed, simnorm: tl.constexpr, width: tl.constexpr,
    eps: tl.constexpr, block: tl.constexpr,
):  # fmt: skip  # pragma: no cover (compiled)
    """From what the head says of the next state [B, D] to its latent ``x`` and its layer norm."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)[:, None] * 8 + tl.arange(0, 8)[None, :]  # [groups, 8]
    within = column < width
    at = row * width + column
    said = tl.load(following + at, mask=within, other=0.0)
    state = said.to(tl.float32)
    if simnorm:
        state = tl.exp(state - tl.max(state, 1)[:, None])
        state = tl.where(within, state / tl.sum(state, 1)[:, None], 0.0)
    else:
        gain = tl.load(latent_weight + column, mask=within, other=0.0).to(tl.float32)
        shift = tl.load(latent_bias + column, mask=within, other=0.0).to(tl.float32)
        state = _normalised(state, within, gain, shift, width, eps)
    kept = state.to(said.dtype)
    tl.store(x + at, kept, mask=within)
    gain = tl.load(weight + column, mask=within, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=within, other=0.0).to(tl.float32)
    tl.store(normed + at, _normalised(kept.to(tl.float32), within, gain, shift, width, eps), mask=within)


@triton.jit
def attend(
    qkv, keys, values, out, cos, sin, node, seen, position, slot_position, node_stride, window,
    state: tl.constexpr, root_tokens: tl.constexpr, nodes: tl.constexpr, slots: tl.constexpr, heads: tl.constexpr,
    dim: tl.constexpr, scale: tl.constexpr, block_slots: tl.constexpr, block: tl.constexpr,
):  # fmt: skip  # pragma: no cover (compiled)
    """Rotates one new token's query and key, keeps its key and value in its own slot, and attends.

    ``state`` is 0 for the token of a node's action, 1 for the token of its state. ``qkv`` is [B, 3, heads, dim],
    ``keys`` and ``values`` are [B, heads, slots, dim], ``out`` is [B, heads, dim]. Whatever a node does not see is not
    read.
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    new = tl.load(node + row * node_stride)
    own = root_tokens + 2 * (new - 1) + state
    at = tl.load(position + row * nodes + new) - 1 + state
    d = tl.arange(0, block)
    inside = d < dim
    other = tl.where(d < dim // 2, d + dim // 2, d - dim // 2)  # the second number of its pair
    c = tl.load(cos + at * dim + d, mask=inside, other=0.0)
    s = tl.load(sin + at * dim + d, mask=inside, other=0.0)
    query = qkv + (row * 3 * heads + head) * dim
    key = query + heads * dim
    q = tl.load(query + d, mask=inside, other=0.0).to(tl.float32) * c
    q = (q + tl.load(query + other, mask=inside, other=0.0).to(tl.float32) * s) * scale
    raw = tl.load(key + d, mask=inside, other=0.0)
    turned = raw.to(tl.float32) * c + tl.load(key + other, mask=inside, other=0.0).to(tl.float32) * s
    k = turned.to(raw.dtype)
    v = tl.load(key + heads * dim + d, mask=inside, other=0.0)
    base = (row * heads + head) * slots * dim
    tl.store(keys + base + own * dim + d, k, mask=inside)
    tl.store(values + base + own * dim + d, v, mask=inside)

    best = tl.sum(q * k.to(tl.float32), 0)  # its own score; then the others, a block of slots at a time
    mass = tl.exp(best - best)
    result = v.to(tl.float32)
    for start in range(0, slots, block_slots):
        slot = start + tl.arange(0, block_slots)
        earlier = slot < own  # its parents' tokens: what is newer belongs to the token itself, or to nobody yet
        visible = tl.load(seen + (row * nodes + new) * slots + slot, mask=earlier, other=0) != 0
        when = tl.load(slot_position + row * slots + slot, mask=earlier, other=0)
        visible = visible & (at - when < window)
        read = visible[:, None] & inside[None, :]
        where = base + slot[:, None] * dim + d[None, :]
        seen_keys = tl.load(keys + where, mask=read, other=0.0).to(tl.float32)
        seen_values = tl.load(values + where, mask=read, other=0.0).to(tl.float32)
        score = tl.where(visible, tl.sum(seen_keys * q[None, :], 1), float("-inf"))
        top = tl.maximum(best, tl.max(score, 0))
        fade = tl.exp(best - top)
        weight = tl.exp(score - top)
        mass = mass * fade + tl.sum(weight, 0)
        result = result * fade + tl.sum(weight[:, None] * seen_values, 0)
        best = top
    tl.store(out + (row * heads + head) * dim + d, result / mass, mask=inside)


@triton.jit
def _decoded(logits, bins: tl.constexpr, limit: tl.constexpr, block: tl.constexpr):  # pragma: no cover (compiled)
    """`scalar.Support.decode` of one row."""
    i = tl.arange(0, block)
    x = tl.load(logits + i, mask=i < bins, other=float("-inf")).to(tl.float32)
    weight = tl.exp(x - tl.max(x, 0))
    mean = tl.sum(weight * (i - limit).to(tl.float32), 0) / tl.sum(weight, 0)
    shifted = tl.abs(mean) + 1.001
    root = 2.0 * shifted / (tl.sqrt(1.0 + 0.004 * shifted) + 1.0)
    size = root * root - 1.0
    return tl.where(mean > 0.0, size, tl.where(mean < 0.0, -size, mean * 0.0))


@triton.jit
def say(
    reward_logits, value_logits, logits, known, reward, value, ids, probs,
    bins: tl.constexpr, limit: tl.constexpr, vocabulary: tl.constexpr, top_k: tl.constexpr,
    block_bins: tl.constexpr, block_vocabulary: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip  # pragma: no cover (compiled)
    """Scalars from logits [B, bins]; the K known actions of highest ``logits`` [B, V], best first, and their softmax.

    Among equals the lowest id comes first. A logit that is NaN or infinite makes all probabilities of its row NaN.
    """
    row = tl.program_id(0).to(tl.int64)
    tl.store(reward + row, _decoded(reward_logits + row * bins, bins, limit, block_bins))
    tl.store(value + row, _decoded(value_logits + row * bins, bins, limit, block_bins))
    v = tl.arange(0, block_vocabulary)
    inside = v < vocabulary
    allowed = tl.load(known + row * vocabulary + v, mask=inside, other=0) != 0
    left = tl.load(logits + row * vocabulary + v, mask=inside, other=0.0).to(tl.float32)
    sound = left < float("inf")
    unfit = tl.sum((allowed & ~sound).to(tl.int32), 0)
    left = tl.where(allowed & sound, left, float("-inf"))
    place = tl.arange(0, block_k)
    best = tl.full((block_k,), float("-inf"), tl.float32)
    chosen = tl.full((block_k,), -1, tl.int32)
    for i in range(top_k):
        top, at = tl.max(left, 0, return_indices=True)
        best = tl.where(place == i, top, best)
        chosen = tl.where(place == i, at, chosen)
        left = tl.where(v == at, float("-inf"), left)
    real = best > float("-inf")
    weight = tl.where(real, tl.exp(best - tl.max(best, 0)), 0.0)
    share = tl.where(real, weight / tl.sum(weight, 0), 0.0)
    share = tl.where(unfit > 0, float("nan"), share)
    tl.store(ids + row * top_k + place, tl.where(real, chosen, -1), mask=place < top_k)
    tl.store(probs + row * top_k + place, share, mask=place < top_k)
