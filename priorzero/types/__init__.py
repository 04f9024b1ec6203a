"""The nouns: what flows from the games to the gradient. No behaviour lives here.

Shape letters, used in every docstring of the project:

=====  ==========================================================
``B``  batch: environments in search, windows in training
``C``  observations that the world model looks at before a search
``S``  steps of a training window, unroll and bootstrap together
``T``  unroll steps: the steps of a window that are trained
``A``  actions of one state, padded
``K``  actions of an interior tree node
``U``  distinct actions of a batch, or of the whole vocabulary
``E``  width of a sentence vector
``O``  width of an observation vector (observation parts x E)
``D``  width of the world model
``L``  language-model tokens
``N``  nodes of a search tree
=====  ==========================================================

``legal`` masks are True where an action is legal. Log-probabilities end in ``_logprobs``, probabilities in ``_probs``.
Versions count weight updates that reached the collector: 0 is the untrained model.
"""

from priorzero.types.batches import PackedPrompts, PolicyBatch, TensorRecord, TokenBatch, WorldModelBatch
from priorzero.types.language import Answer, Dialogue, Generation, Imagined, Message, PromptRow
from priorzero.types.play import (
    Context,
    Edges,
    EpisodeResult,
    Expansion,
    Observation,
    PriorResult,
    Root,
    SearchResult,
    Segment,
    SegmentId,
    Situation,
    Step,
    Subtree,
    Turn,
)

__all__ = [
    "Answer",
    "Context",
    "Dialogue",
    "Edges",
    "EpisodeResult",
    "Expansion",
    "Generation",
    "Imagined",
    "Message",
    "Observation",
    "PackedPrompts",
    "PolicyBatch",
    "PriorResult",
    "PromptRow",
    "Root",
    "SearchResult",
    "Segment",
    "SegmentId",
    "Situation",
    "Step",
    "Subtree",
    "TensorRecord",
    "TokenBatch",
    "Turn",
    "WorldModelBatch",
]
