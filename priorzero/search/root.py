"""What happens at the root before and after the search: priors, noise, the choice of an action.

Pure numpy functions on [B, A]. Rows are decisions, ``legal`` is True where an action is legal. Probabilities come in
as any float type with 0 outside ``legal`` and go out as float32. Every function raises ValueError with the first
offending row where a row has no legal action, or where a NaN or an infinity comes in.
"""

from __future__ import annotations

import numpy as np


def mix_priors(wm_probs: np.ndarray, llm_probs: np.ndarray, llm_weight: np.ndarray | float) -> np.ndarray:
    """The fused root prior ``(1 - w) wm_probs + w llm_probs`` (PriorZero, arXiv 2605.12289).

    Note the weight: here w belongs to the language model; some texts let w stand before the world model.

    Args:
        wm_probs: [B, A] policy of the world model.
        llm_probs: [B, A] policy of the language model.
        llm_weight: w in 0..1, one number or [B].

    Returns:
        [B, A] float32.
    """
    _check_same_shape(wm_probs=wm_probs, llm_probs=llm_probs)
    _check_probs("wm_probs", wm_probs)
    _check_probs("llm_probs", llm_probs)
    weight = np.asarray(llm_weight, np.float64)
    if weight.shape not in ((), wm_probs.shape[:1]):
        raise ValueError(f"llm_weight must be a number or [{len(wm_probs)}], got {list(weight.shape)}")
    if not ((weight >= 0) & (weight <= 1)).all():
        raise ValueError(f"llm_weight must lie in 0..1, got {llm_weight}")
    weight = weight.reshape(-1, 1)
    return ((1 - weight) * wm_probs + weight * llm_probs).astype(np.float32)


def llm_weights(
    llm_probs: np.ndarray, legal: np.ndarray, *, start: float, end: float, done: float, unsure: float | None
) -> np.ndarray:
    """Weight of the language model's prior in every row: annealed, and lower where it has no opinion.

    Args:
        llm_probs: [B, A], rows sum to 1.
        legal: [B, A] bool.
        start: Weight at ``done`` 0.
        end: Weight at ``done`` 1; linear in between.
        done: How much of the annealing is done, 0..1.
        unsure: Weight at full entropy, where it is below the annealed one; see `entropy_weight`. None: the same in
            every row.

    Returns:
        [B] float32.
    """
    weight = start + done * (end - start)
    if unsure is not None:
        return entropy_weight(llm_probs, legal, min(unsure, weight), weight)
    return np.full(len(llm_probs), weight, np.float32)


def masked_softmax(logits: np.ndarray, legal: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """``softmax(logits / temperature)`` over the legal actions, 0 elsewhere.

    Args:
        logits: [B, A]; anything, NaN too, may stand where an action is not legal.
        legal: [B, A] bool.
        temperature: Above 0.

    Returns:
        [B, A] float32.
    """
    _check_same_shape(logits=logits, legal=legal)
    _check_legal(legal)
    _check_rows("logits of a legal action are NaN or infinite", legal & ~np.isfinite(logits))
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
    return _softmax(np.where(legal, logits, -np.inf), temperature).astype(np.float32)


def add_noise(
    probs: np.ndarray, legal: np.ndarray, alpha: float, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """``(1 - fraction) probs + fraction Dirichlet(alpha)``, the noise over the legal actions only (AlphaZero).

    The draws depend on the legal actions in row order, not on how far the rows are padded.

    Args:
        probs: [B, A].
        legal: [B, A] bool.
        alpha: Concentration, above 0; small values put the noise on few actions.
        fraction: Weight of the noise in 0..1.
        rng: Source of the noise; advanced.

    Returns:
        [B, A] float32.
    """
    _check_same_shape(probs=probs, legal=legal)
    _check_legal(legal)
    _check_probs("probs", probs)
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha must be above 0 and finite, got {alpha}")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in 0..1, got {fraction}")
    # Gamma(alpha) = Gamma(alpha + 1) U^(1/alpha): in logarithms it does not underflow where alpha is small.
    count = int(legal.sum())
    log_gamma = np.full(legal.shape, -np.inf)
    log_gamma[legal] = np.log(rng.standard_gamma(alpha + 1, count)) - rng.standard_exponential(count) / alpha
    return ((1 - fraction) * probs + fraction * _softmax(log_gamma, 1.0)).astype(np.float32)


def choose(
    visits: np.ndarray, legal: np.ndarray, temperature: float, rng: np.random.Generator, probs: np.ndarray
) -> np.ndarray:
    """Chooses an action from the visits of the search.

    Args:
        visits: [B, A], 0 where an action is not legal, some in every row.
        legal: [B, A] bool.
        temperature: Sample from ``visits^(1 / temperature)``; 0 takes the most visited action, among equals the one
            with the higher prior, then the one with the lowest index.
        rng: Source of the samples, one uniform number a row; untouched at temperature 0.
        probs: [B, A] prior that settles ties.

    Returns:
        [B] int64 index into A.
    """
    _check_same_shape(visits=visits, legal=legal, probs=probs)
    _check_legal(legal)
    _check_probs("probs", probs)
    _check_rows("visits are negative, NaN or infinite", ~((visits >= 0) & np.isfinite(visits)))
    _check_rows("visits on an action that is not legal", ~legal & (visits > 0))
    _check_rows("no visits on any legal action", visits.max(-1, keepdims=True) <= 0)
    if not 0 <= temperature < np.inf:
        raise ValueError(f"temperature must be 0 or above and finite, got {temperature}")
    if temperature == 0:
        best = visits == visits.max(-1, keepdims=True)
        return np.where(best, probs, -1.0).argmax(-1)
    log_visits = np.log(visits, where=visits > 0, out=np.full(visits.shape, -np.inf))
    cumulative = _softmax(log_visits, temperature).cumsum(-1)
    total = cumulative[:, -1:]
    threshold = np.minimum(rng.random((len(visits), 1)) * total, np.nextafter(total, 0))
    return (cumulative > threshold).argmax(-1)


def entropy_weight(llm_probs: np.ndarray, legal: np.ndarray, low: float, high: float) -> np.ndarray:
    """Weight of the language model's prior: ``high`` where it is certain, ``low`` where it is uniform.

    ``high - (high - low) H / log(n)`` with the entropy H of the row and its n legal actions; ``high`` for n = 1.

    Args:
        llm_probs: [B, A], rows sum to 1.
        legal: [B, A] bool.
        low: Weight at full entropy, in 0..``high``.
        high: Weight at entropy 0, at most 1.

    Returns:
        [B] float32.
    """
    _check_same_shape(llm_probs=llm_probs, legal=legal)
    _check_legal(legal)
    _check_probs("llm_probs", llm_probs)
    if not 0 <= low <= high <= 1:
        raise ValueError(f"weights must satisfy 0 <= low <= high <= 1, got low {low}, high {high}")
    log_probs = np.log(llm_probs, where=llm_probs > 0, out=np.zeros(llm_probs.shape))
    entropy = -(llm_probs * log_probs).sum(-1)
    most = np.log(np.maximum(legal.sum(-1), 2))  # of one action the entropy is 0, whatever it is divided by
    certainty = 1 - np.clip(entropy / most, 0, 1)
    return (low + (high - low) * certainty).astype(np.float32)


def _softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Rows of float64; -inf is allowed where a row has something finite."""
    logits = logits.astype(np.float64)
    weights = np.exp((logits - logits.max(-1, keepdims=True)) / temperature)
    return weights / weights.sum(-1, keepdims=True)


def _check_same_shape(**arrays: np.ndarray) -> None:
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 2:
        raise ValueError(f"arrays must have one shape [B, A], got {shapes}")


def _check_legal(legal: np.ndarray) -> None:
    if legal.dtype != np.bool_:
        raise ValueError(f"legal must be bool, True where an action is legal, got {legal.dtype}")
    _check_rows("no legal action", legal.sum(-1, keepdims=True) == 0)


def _check_probs(name: str, probs: np.ndarray) -> None:
    _check_rows(f"{name} hold a NaN, an infinity or a negative number", ~((probs >= 0) & np.isfinite(probs)))


def _check_rows(fault: str, wrong: np.ndarray) -> None:
    if wrong.any():
        raise ValueError(f"row {int(wrong.any(-1).argmax())}: {fault}")
