"""Times whole decisions: context in, 25 simulations, visits out; and checks that all ways of searching agree.

From the root of the repository: ``OMP_NUM_THREADS=1 python -m benchmarks.search`` (one core: milliseconds of processor
time) or ``python -m benchmarks.search --device cuda`` (decisions a second, see `benchmarks.search_cuda`). The plain
implementation runs the whole sequence of every node, one tree at a time. The floor is the bare matrix products of the
same shapes. Exits with 1 where two ways of searching that must agree do not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.corridor import CONTEXT, Corridor
from benchmarks.timing import cpu_ms, machine, row, show, write_json
from priorzero.search import GumbelConfig, SearchConfig, gumbel_search, masked_softmax, search
from priorzero.types import Context, Expansion, Root, SearchResult
from priorzero.world_model.model import UniZero, UniZeroConfig, interleave
from priorzero.world_model.planner import Planner, PlannerConfig

VECTOR, ACTIONS, VOCABULARY, STEPS = 384, 12, 200, 4
PUCT = {"c_init": 1.25, "c_base": 19652.0, "gamma": 0.997, "minmax_floor": 0.5, "reuse": False}
GUMBEL = {"max_considered": 12, "c_visit": 50.0, "c_scale": 0.1, "gamma": 0.997, "minmax_floor": 0.5}


def make_model(width: int, simulations: int) -> UniZero:
    """Two layers; the last layers of the heads are random, so that states differ in what is said of them."""
    torch.manual_seed(0)
    sizes = {"observation_width": VECTOR, "action_width": VECTOR, "width": width, "layers": 2, "heads": 8}
    more = {"dropout": 0.0, "latent_norm": "simnorm", "support_limit": 50, "window_steps": 10}
    model = UniZero(UniZeroConfig(**sizes, **more, max_positions=2 * (STEPS + simulations)))
    for head in (model.reward_head, model.value_head, model.policy_head):
        nn.init.normal_(head[-1].weight, std=0.1)
    return model


def make_planner(width: int, simulations: int, kind: Callable[..., Planner] = Planner, **options: Any) -> Planner:
    """A planner of some kind with the benchmark's network and vocabulary."""
    config = PlannerConfig(context_steps=STEPS, top_k=20, simulations=simulations)
    planner = kind(make_model(width, simulations), config, **options)
    planner.set_actions(np.random.default_rng(0).standard_normal((VOCABULARY, VECTOR)).astype(np.float32))
    return planner


class Decisions:
    """``batch`` states to decide in, different for each ``seed``."""

    def __init__(self, batch: int, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        vectors = rng.standard_normal((batch, STEPS, VECTOR)).astype(np.float32)
        past = rng.integers(0, VOCABULARY, (batch, STEPS - 1)).astype(np.int32)
        self.context = Context(vectors, past, rng.integers(1, STEPS + 1, batch))
        self.actions = np.stack([rng.permutation(VOCABULARY)[:ACTIONS] for _ in range(batch)]).astype(np.int32)
        self.known = rng.random((batch, VOCABULARY)) < 0.5
        self.known[:, 0] = True

    def search(self, planner: Planner, simulations: int, algorithm: str = "puct") -> SearchResult:
        """What a player does at each decision."""
        said = planner.root(self.context, self.actions, self.known)
        root = Root(self.actions, masked_softmax(said.logits, self.actions >= 0), said.value)
        if algorithm == "gumbel":
            return gumbel_search(planner, root, GumbelConfig(simulations, **GUMBEL), np.random.default_rng(0))
        return search(planner, root, SearchConfig(simulations, **PUCT))


class Plain:
    """The network as it was trained, on the whole sequence of every node, one tree at a time, nothing kept."""

    def __init__(self, planner: Planner) -> None:
        self.model, self.config = planner.model, planner.config
        self.device, self.vectors = planner.device, planner._vectors

    @torch.no_grad()
    def root(self, context: Context, actions: np.ndarray, known: np.ndarray) -> Any:
        """As `Planner.root`, without the root's policy, which is the same work."""
        self.known, self.tokens = torch.from_numpy(known), []
        for vectors, past, n in zip(context.vectors, context.actions, context.length, strict=True):
            latent = self.model.encode(torch.from_numpy(vectors[STEPS - n :]))
            taken = self.model.action_tokens(self.vectors[past[STEPS - n :]])
            self.tokens.append([interleave(latent[None], taken[None])])
        return self

    @torch.no_grad()
    def expand(self, node: int, parent: np.ndarray, action: np.ndarray) -> Expansion:
        """As `Planner.expand`."""
        rows = []
        keys = self.model.action_keys(self.vectors)
        for b, (p, a) in enumerate(zip(parent, action, strict=True)):
            tokens = torch.cat((self.tokens[b][p], self.model.action_tokens(self.vectors[a])[None, None]), dim=1)
            reward, latent = self.model.read_step(self.model.transformer(tokens)[0][:, -1])
            tokens = torch.cat((tokens, latent[:, None]), dim=1)
            self.tokens[b].append(tokens)
            value, query = self.model.read_state(self.model.transformer(tokens)[0][0, -1])
            logits = (keys @ query).masked_fill(~self.known[b], -torch.inf)
            best, ids = logits.topk(self.config.top_k)
            rows.append((self.model.support.decode(reward)[0], self.model.support.decode(value), ids, best.softmax(0)))
        reward, value, ids, probs = (torch.stack(x) for x in zip(*rows, strict=True))
        return Expansion(reward.numpy(), value.numpy(), ids.int().numpy(), probs.numpy())


def products(width: int, simulations: int, batch: int, device: str, dtype: torch.dtype) -> Callable[[], None]:
    """The bare matrix products of one decision, each with weights of its own."""
    d, bins, context = width, 101, 2 * STEPS - 1
    block = [(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)]
    heads = [(d, 2 * d), (d, bins), (d, d)]
    weights = [torch.randn(o, i, device=device, dtype=dtype) for i, o in (*block, *block, *heads, *heads)]
    one = {i: torch.randn(batch, i, device=device, dtype=dtype) for i in (d, 4 * d)}
    many = {i: torch.randn(batch * context, i, device=device, dtype=dtype) for i in (d, 4 * d)}

    def simulation() -> None:
        for first in (8, 11):  # the token of the action, the token of the state
            for weight in (*weights[:8], *weights[first : first + 3]):
                F.linear(one[weight.shape[1]], weight)

    graph = None
    if device == "cuda":
        simulation()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            simulation()

    @torch.inference_mode()
    def run() -> None:
        for weight in (*weights[:4], weights[4]):
            F.linear(many[weight.shape[1]], weight)
        for _ in range(simulations):
            graph.replay() if graph else simulation()

    return run


def on_cpu(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of processor time, one core."""
    rows, sims = [], options.simulations
    for batch in options.batches or (1, 8, 32):
        decisions = Decisions(batch)
        for width, precision in ((48, "float32"), (options.width, "float32"), (options.width, "int8")):
            planner = make_planner(width, sims, precision=precision)
            samples = cpu_ms(lambda d=decisions, p=planner: d.search(p, sims), options.samples)
            rows.append(row(f"planner {precision}", samples, d=width, B=batch))
        floor = products(options.width, sims, batch, "cpu", torch.float32)
        rows.append(
            row("floor: bare products, torch float32", cpu_ms(floor, options.samples), d=options.width, B=batch)
        )
        if batch <= options.plain_up_to:
            planner = make_planner(options.width, sims)
            said = planner.root(decisions.context, decisions.actions, decisions.known)
            root = Root(decisions.actions, masked_softmax(said.logits, decisions.actions >= 0), said.value)

            def plain(planner: Planner = planner, decisions: Decisions = decisions, root: Root = root) -> SearchResult:
                model = Plain(planner).root(decisions.context, decisions.actions, decisions.known)
                return search(model, root, SearchConfig(sims, **PUCT))

            rows.append(row("plain", cpu_ms(plain, 1, 0), d=options.width, B=batch))
            must_agree("plain and planner float32", plain(), decisions.search(planner, sims), 0.9)
    return rows


def agreement(options: argparse.Namespace) -> None:
    """How often int8 and float32 choose the same action, in a small game that the network has learned."""
    game, sims, count = Corridor(8), options.simulations, 200
    model = game.train(options.width, updates=options.agreement, windows=16, lr=3e-4)
    config, rng = PlannerConfig(context_steps=CONTEXT, top_k=3, simulations=sims), np.random.default_rng(5)
    asked = []
    for _ in range(count):
        place, action = int(rng.integers(0, game.length)), int(rng.integers(0, 3))
        after, _ = game.step(place, action)
        asked.append(([action], [place, after]) if after != game.length else ([], [place]))
    contexts = [game.ask(Planner(model, config), *a) for a in asked]
    parts = [c for c, _, _ in contexts]
    context = Context(*(np.concatenate([getattr(c, n) for c in parts]) for n in ("vectors", "actions", "length")))
    actions, known = np.concatenate([a for _, a, _ in contexts]), np.ones((count, 3), bool)
    results = []
    for precision in ("float32", "int8"):
        planner = Planner(model, config, precision=precision)
        planner.set_actions(game.actions)
        said = planner.root(context, actions, known)
        root = Root(actions, np.full(actions.shape, 1 / 3, np.float32), said.value)
        results.append(search(planner, root, SearchConfig(sims, **PUCT | {"gamma": 0.9})))
    right = [(r.visits.argmax(1) == 1).mean() for r in results]
    print(f"trained network, d {options.width}: float32 goes right in {right[0]:.3f}, int8 in {right[1]:.3f}")
    must_agree("float32 and int8", *results, 0.0)
    same = (results[0].visits.argmax(1) == results[1].visits.argmax(1)).mean()
    if same < 0.95:
        sys.exit(f"FAILED: int8 chooses the same action in only {same:.3f} of {count} decisions")


def must_agree(what: str, a: SearchResult, b: SearchResult, share: float) -> None:
    """Ends the program where fewer than ``share`` of the trees have equal visits."""
    equal = (a.visits == b.visits).all(1)
    best = (a.visits.argmax(1) == b.visits.argmax(1)).mean()
    q, value = np.abs(a.q - b.q)[equal].max(initial=0.0), np.abs(a.value - b.value)[equal].max(initial=0.0)
    print(f"{what}: equal visits in {equal.sum()}/{len(equal)} trees, same best action {best:.3f}, "
          f"in equal trees q differs by {q:.2g} and value by {value:.2g}", flush=True)  # fmt: skip
    if equal.mean() < share:
        i = int((~equal).argmax())
        print(f"FAILED: less than {share:.3f} agree. Row {i}:\n  {a.visits[i].tolist()}\n  {b.visits[i].tolist()}")
        print(f"  q {a.q[i].round(5).tolist()}\n  q {b.q[i].round(5).tolist()}")
        sys.exit(1)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--simulations", type=int, default=25)
    parser.add_argument("--batches", type=int, nargs="*")
    parser.add_argument("--samples", type=int, default=7)
    parser.add_argument("--plain-up-to", type=int, default=8, help="largest batch of the plain implementation")
    parser.add_argument("--agreement", type=int, default=0, help="train so many updates, then compare int8 to float32")
    parser.add_argument("--compile", action="store_true", help="on cuda: also with torch.compile (minutes)")
    parser.add_argument("--json", default="", help="where to write the rows, if not to logs/benchmarks")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda, but torch sees no CUDA device: " + str(machine()))
    if options.device == "cpu":
        torch.set_num_threads(1)
    if options.agreement:
        agreement(options)
        return
    failed: list[str] = []
    if options.device == "cuda":
        from benchmarks.search_cuda import Attempts, on_cuda  # imports this module

        attempts = Attempts(budget_s=3600)
        rows, failed = on_cuda(options, attempts), attempts.failed
    else:
        rows = on_cpu(options)
    print(machine())
    show(rows)
    write_json(options.json or f"search-{options.device}", rows, simulations=options.simulations)
    if failed:
        sys.exit(f"FAILED: {failed}")


if __name__ == "__main__":
    main()
