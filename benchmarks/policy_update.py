"""Times a policy update on generated answers (GRPO: 8 prompts, 8 answers each), packed as runs do it and row by row.

From the root of the repository: ``python -m benchmarks.policy_update`` (CPU, two threads, float32, LoRA) or
``python -m benchmarks.policy_update --device cuda`` (bfloat16). Minutes on a CPU, nearly all of them in the naive ways.

Packed: `TokenModule` under Lightning with the objective of ``objective=grpo``, where answers to one prompt share the
prompt's tokens under the tree mask. Naive, as in ``BatchPPOTrainer.train_batch`` of the PriorZero of LightZero
(``zoo/jericho/priorzero/models/actor.py``, main at 97c9843): each answer is a row of prompt and answer, rows are padded
on the left, micro-batches go through the whole model, and logits are float32, at every token ("all logits") or at the
answers' tokens only ("answer logits", its ``logits_to_keep``); the loss is written out here once more. Timed: packing,
forward, loss and backward of the whole update, without the optimizer's step, which is the same.

First both must give the same loss (1e-5) and the same gradient (1e-4 of its norm, 1e-3 on a GPU) in float32: the
program ends with 1 where they do not.
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from benchmarks.llm_inputs import answers, builder, situations, spread
from benchmarks.prior_scoring import left_padded
from benchmarks.timing import machine, row, show, write_json
from priorzero.policy.experience import Experience
from priorzero.policy.language_module import PolicyOptim
from priorzero.policy.load import LanguageModel, LoraSettings, load_llm
from priorzero.policy.token_module import TokenModule

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, {"cpu": 1e-4, "cuda": 1e-3}
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CLIP_LOW, CLIP_HIGH, DUAL_CLIP, ROLLOUT_CAP = 0.2, 0.28, 3.0, 2.0  # as in objective=grpo
Gradient = dict[str, Tensor]
Runs = dict[str, Callable[[], tuple[float, Gradient]]]  # the ways: what they return, the loss and its gradient


class Timed(TokenModule):
    """Notes losses, gradients and how long they took."""

    loss, seconds, cpu_s = 0.0, 0.0, 0.0
    begin: tuple[float, float]
    gradient: Gradient

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Start the clock with the first micro-batch."""
        if batch_idx == 0:
            self.loss, self.begin = 0.0, (time.perf_counter(), time.process_time())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """As ever; Lightning divides the loss by the number of micro-batches."""
        loss = super().training_step(batch, batch_idx)
        self.loss += loss.item() / self.trainer.accumulate_grad_batches
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Stop the clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds, self.cpu_s = time.perf_counter() - self.begin[0], time.process_time() - self.begin[1]
        self.gradient = gradient_of(self)


def gradient_of(module: TokenModule) -> Gradient:
    """The gradient of every trained weight, on the CPU."""
    model: Any = module.scorer.model
    named = [(name, p.grad) for name, p in model.named_parameters()]
    return {name: grad.float().to("cpu", copy=True) for name, grad in named if grad is not None}


def make_module(language_model: LanguageModel) -> Timed:
    """The module with the objective of ``objective=grpo``; a learning rate of 0, so that every update is the same."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", ["objective=grpo"])
    optim = PolicyOptim(
        lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, warmup_updates=0, total_updates=1, min_lr_ratio=1.0
    )
    objective = instantiate(cfg.objective, _convert_="object")
    return Timed(language_model, None, objective=objective, optim=optim, temperature=1.0)


def make_experience(language_model: LanguageModel, module: TokenModule, options: argparse.Namespace) -> Experience:
    """Prompts of different lengths, rewards of 0 and 1, and a policy that moved since the answers were written."""
    generator, shape = torch.Generator().manual_seed(0), (options.prompts, options.answers)
    played = situations(options.prompts, 20)
    room = torch.linspace(options.tokens[0], options.tokens[1], options.prompts).int().tolist()
    prompts = [builder(language_model.tokenizer, n).prompt(s) for n, s in zip(room, played, strict=True)]
    said = answers(language_model.tokenizer, shape[0] * shape[1], (8, 32))
    width = max(map(len, said))
    mask = torch.arange(width) < torch.tensor([len(a) for a in said])[:, None]
    rewards = torch.randint(0, 2, shape, generator=generator).float()
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)
    experience = Experience(
        group=torch.arange(shape[0]).repeat_interleave(shape[1]),
        prompts=[prompt for prompt in prompts for _ in range(shape[1])],
        answers=said,
        mask=mask,
        rollout_logprobs=torch.zeros(mask.shape),
        old_logprobs=torch.zeros(mask.shape),
        advantages=advantages.flatten()[:, None].expand(mask.shape).contiguous(),
    )
    now = torch.zeros(mask.shape)
    with torch.no_grad():
        for group in experience.groups():
            batch = experience.batch(group, (1, 1), language_model.pad_id, options.row_tokens)
            found = module.scorer(batch.to(options.device), entropy=False).logprobs.cpu()
            now[group, : found.shape[1]] = found
    old = now + 0.2 * torch.randn(mask.shape, generator=generator)
    rollout = old + 0.02 * torch.randn(mask.shape, generator=generator)
    return replace(experience, old_logprobs=old.where(mask, 0.0), rollout_logprobs=rollout.where(mask, 0.0))


def packed(module: Timed, experience: Experience, pad_id: int, options: argparse.Namespace) -> tuple[float, Gradient]:
    """One update by `TokenModule` under Lightning: its loss and its gradient; the time is in ``module.seconds``."""
    groups, size = experience.groups(), experience.size(range(len(experience.answers)))
    count = min(options.micro_batches or (1 if options.device == "cuda" else len(groups)), len(groups))
    begin = time.perf_counter()
    parts = [[n for group in groups[i::count] for n in group] for i in range(count)]
    batches: Any = [experience.batch(part, size, pad_id, options.row_tokens) for part in parts]
    packing = time.perf_counter() - begin
    trainer = lightning.Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        max_epochs=1,
        accumulate_grad_batches=count,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    module.to(options.device)  # Lightning leaves it on the CPU
    module.seconds += packing
    return module.loss, module.gradient


def naive(
    module: TokenModule, experience: Experience, pad_id: int, micro_batch: int, all_logits: bool
) -> tuple[float, Gradient]:
    """The same update from rows of prompt and answer, everything written out."""
    model: Any = module.scorer.model
    model.zero_grad()
    total, tokens = 0.0, int(experience.mask.sum())
    for first in range(0, len(experience.answers), micro_batch):
        chosen = range(first, min(first + micro_batch, len(experience.answers)))
        rows = [(experience.prompts[n], experience.answers[n]) for n in chosen]
        padded, mask, position = left_padded(rows, pad_id, module.device)
        keep = 0 if all_logits else max(len(answer) for _, answer in rows) + 1
        out = model(input_ids=padded, attention_mask=mask, position_ids=position, use_cache=False, logits_to_keep=keep)
        logits = out.logits.float()[:, :-1]
        targets = padded[:, -logits.shape[1] :, None]
        logprobs = (logits.gather(-1, targets) - logits.logsumexp(-1, keepdim=True))[..., 0]
        losses = [
            token_losses(experience, n, own[-len(answer) :])
            for n, own, (_, answer) in zip(chosen, logprobs, rows, strict=True)
        ]
        loss = torch.cat(losses).sum() / tokens
        loss.backward()
        total += loss.item()
    return total, gradient_of(module)


def token_losses(experience: Experience, n: int, logprobs: Tensor) -> Tensor:
    """Clipped surrogate of each token of answer ``n``, corrected for the engine that wrote it."""
    stored = (experience.old_logprobs, experience.rollout_logprobs, experience.advantages)
    old, rollout, advantage = (x[n, : len(logprobs)].to(logprobs.device) for x in stored)
    ratio = (logprobs - old).exp()
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH))
    loss = torch.where(advantage < 0, torch.minimum(loss, -advantage * DUAL_CLIP), loss)
    return loss * (old - rollout).exp().clamp(max=ROLLOUT_CAP)


def apart(a: Gradient, b: Gradient) -> float:
    """How far two gradients are apart, as a share of the norm of the second."""
    if a.keys() != b.keys():
        raise ValueError(f"{len(a.keys() ^ b.keys())} weights have a gradient in one way only")
    difference = torch.stack([(a[n] - b[n]).square().sum() for n in b]).sum()
    return (difference / torch.stack([g.square().sum() for g in b.values()]).sum()).sqrt().item()


def load(options: argparse.Namespace, dtype: str) -> LanguageModel:
    """The model; adapters start as something, for else half of their gradient is 0."""
    lora = None if options.full else LoraSettings(r=16, alpha=32, dropout=0.0, target_modules="all-linear")
    language_model = load_llm(
        options.source,
        dtype=dtype,
        device=options.device,
        attn_implementation="sdpa",
        lora=lora,
        gradient_checkpointing=False,
    )
    torch.manual_seed(0)
    for name, weight in language_model.model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.02)
    return language_model


def peak_mb(device: str) -> int:
    """Largest memory until now: of the process, or allocated on the GPU since it was reset."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def ways(module: Timed, experience: Experience, pad_id: int, options: argparse.Namespace) -> Runs:
    """The packed way, then the naive ones."""
    module.to(options.device)
    return {
        "packed": lambda: packed(module, experience, pad_id, options),
        "naive rows, answer logits": lambda: naive(module, experience, pad_id, options.micro_batch, False),
        "naive rows, all logits": lambda: naive(module, experience, pad_id, options.micro_batch, True),
    }


def measure(
    module: Timed, runs: Runs, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, tuple[float, Gradient]]]:
    """One row a way, and what each gave."""
    rows, found = [], {}
    for name, run in runs.items():
        own, cuda = name == "packed", options.device == "cuda"
        samples, warm_ups = (options.samples, 1) if own else (options.naive_samples or 1 + 2 * cuda, int(cuda))
        times, spent = [], 0.0
        for i in range(warm_ups + samples):
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            begin, cpu = time.perf_counter(), time.process_time()
            found[name] = run()
            if i >= warm_ups:
                times.append((module.seconds if own else time.perf_counter() - begin) * 1e3)
                spent += module.cpu_s if own else time.process_time() - cpu
        more = {"cpu_s": round(spent / samples, 2), "peak_mb": peak_mb(options.device)}
        rows.append(row(name, times, **more, loss=f"{found[name][0]:.6f}"))
        print(f"  {name}: {min(times):,.0f} ms", flush=True)
    for r in rows:
        r["x"] = rows[-1]["median_ms"] / r["median_ms"]
    return rows, found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--source", default="smollm2-135m-instruct", help="a model, as in llm.source")
    parser.add_argument("--full", action="store_true", help="train every weight, not LoRA")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--answers", type=int, default=8, help="to each prompt")
    parser.add_argument("--tokens", type=int, nargs=2, default=(400, 500), help="of the prompts, at most")
    parser.add_argument("--row-tokens", type=int, default=512, help="as experience.row_tokens")
    parser.add_argument("--micro-batches", type=int, help="of ours; on a CPU one a prompt, on a GPU one")
    parser.add_argument("--micro-batch", type=int, default=4, help="rows of the naive ways in one pass")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--naive-samples", type=int, help="1 on a CPU, 3 on a GPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", default="", help="where to write the rows, if not to logs/benchmarks")
    return parser.parse_args()


def main() -> None:
    """Prints the table and writes the JSON file."""
    options = arguments()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # Lightning's, on options that this program does not use
    torch.set_num_threads(options.threads)
    language_model = load(options, "float32")
    module = make_module(language_model)
    experience = make_experience(language_model, module, options)
    print(
        f"{options.prompts} prompts of {spread([len(p) for p in experience.prompts])} tokens, {options.answers} "
        f"answers each of {spread([len(a) for a in experience.answers])} tokens",
        flush=True,
    )
    exact, runs = None, ways(module, experience, language_model.pad_id, options)
    if options.device == "cuda":  # in float32 first, untimed
        exact = {name: run() for name, run in runs.items()}
        module = make_module(load(options, "bfloat16"))
        runs = ways(module, experience, language_model.pad_id, options)
    rows, found = measure(module, runs, options)
    exact = exact or found
    (loss, gradient), *peers = exact.values()
    loss_apart = max(abs(loss - peer) for peer, _ in peers)
    gradient_apart = max(apart(gradient, peer) for _, peer in peers)
    print(machine())
    show(rows)
    print(f"in float32 the losses differ by {loss_apart:.2g}, the gradients by {gradient_apart:.2g} of their norm")
    told = {"loss_difference": loss_apart, "gradient_difference": gradient_apart}
    write_json(options.json or f"policy_update-{options.device}", rows, settings=vars(options), **told)
    tolerance = GRADIENT_TOLERANCE[options.device]
    if not (loss_apart <= LOSS_TOLERANCE and gradient_apart <= tolerance):
        sys.exit(f"FAILED: losses may differ by {LOSS_TOLERANCE}, gradients by {tolerance} of their norm")


if __name__ == "__main__":
    main()
