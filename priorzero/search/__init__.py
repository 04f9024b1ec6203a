"""Batched tree search over a model given as a protocol; knows no network and no text."""

from priorzero.search.gumbel import GumbelConfig, GumbelResult, gumbel_search
from priorzero.search.reanalyse import Reanalysis, StoredStates, reanalyse
from priorzero.search.root import add_noise, choose, entropy_weight, llm_weights, masked_softmax, mix_priors
from priorzero.search.search import Model, SearchConfig, TreeModel, earlier_edges, search, search_tree, subtree

__all__ = [
    "GumbelConfig",
    "GumbelResult",
    "Model",
    "Reanalysis",
    "SearchConfig",
    "StoredStates",
    "TreeModel",
    "add_noise",
    "choose",
    "earlier_edges",
    "entropy_weight",
    "gumbel_search",
    "llm_weights",
    "masked_softmax",
    "mix_priors",
    "reanalyse",
    "search",
    "search_tree",
    "subtree",
]
