import math
from dataclasses import replace
from functools import partial

import lightning
import numpy as np
import pytest
import torch
from samples import OBJECTIVE, dialogue, scored, token_module
from scripted import perturb_given
from small_llm import small_llm
from torch.utils.data import DataLoader

from priorzero.policy.experience import ExperienceConfig, ExperienceMaker
from priorzero.policy.load import LoraSettings
from priorzero.policy.token_module import TokenModule, TokenObjective
from priorzero.rl.gae import gae
from priorzero.rl.group_advantages import dr_grpo
from priorzero.rl.token_advantages import AdvantageEstimator

LORA = LoraSettings(r=2, alpha=4, dropout=0.0, target_modules="all-linear")
WHOLE = ExperienceConfig(row_tokens=64, score_tokens=1000, reward_limit=None, mask_given=True)
# 4 + 2 + 2 written tokens; the scores of a group of two are 1 apart, so their advantages are +-0.5
SAMPLES = [
    dialogue([5, 9, 11], [[20, 21, 2], [2]], given=[[40, 41, 42]]),
    dialogue([5, 9, 11], [[22, 2]]),
    dialogue([5, 8], [[33, 2]], group="h"),
    dialogue([5, 8], [[34, 2]], group="h"),
]
SCORES = [1.0, 0.0, 0.0, 1.0]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # torch 2.13 under lightning 2.6
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]


def experience(module, estimate=dr_grpo, samples=SAMPLES, scores=SCORES):
    maker = ExperienceMaker(module, AdvantageEstimator(estimate=estimate, whiten=False), WHOLE, pad_id=0)
    return maker.make(scored(samples, scores))[0]


def micro(found, samples=range(4), update=range(4)):
    return found.batch(list(samples), found.size(list(update)), 0, 64)


class Watch(lightning.Callback):
    """Keeps the gradients of the first update, and lets none happen."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        for p in pl_module.parameters():
            p.grad = None


def train(module, *batches, **options):
    """One update of these micro-batches: its gradients, and what was logged before it."""
    watch = Watch()
    trainer = lightning.Trainer(
        max_steps=1, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=len(batches),
        callbacks=[watch], **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(list(batches), batch_size=None, num_workers=0))
    return watch


def test_every_term_by_hand(tmp_path):
    """All ratios are 1, the KL is that of a shift by 0.5, the critic says 0."""
    module = token_module(kl_place="loss", kl_kind="k1", critic="shared", entropy_weight=0.02, rollout_cap=2.0)
    batch = micro(experience(module, partial(gae, gamma=1.0, lam=1.0)))
    # gae with a critic of 0: every token's advantage and target are the score of its sample
    assert batch.advantages[batch.mask].sum() == 4 + 2
    batch = replace(
        batch,
        ref_logprobs=batch.old_logprobs - 0.5,
        rollout_logprobs=batch.old_logprobs - math.log(4.0),  # weights of 4, cut to 2
    )
    logged = train(module, batch, default_root_dir=tmp_path).metrics
    assert logged["policy/policy_loss"] == pytest.approx(-2.0 * 6 / 10, abs=1e-5)
    assert logged["policy/kl_loss"] == pytest.approx(0.5, abs=1e-5)
    assert logged["policy/value_loss"] == pytest.approx(0.5 * 6 / 10, abs=1e-5)
    with torch.no_grad():
        entropy = float(module.scorer(batch, entropy=True).entropy.sum()) / 10
    assert logged["policy/entropy_loss"] == pytest.approx(entropy, abs=1e-5)
    total = -1.2 + 0.1 * 0.5 - 0.02 * entropy + 0.5 * 0.3
    assert logged["policy/loss"] == pytest.approx(total, abs=1e-5)
    assert (logged["policy/rollout_capped"], logged["policy/rollout_weight"]) == (1.0, 2.0)
    assert logged["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-5)


def test_the_ratio_to_the_old_policy_is_clipped(tmp_path):
    module = token_module()
    batch = micro(experience(module))
    logged = train(module, replace(batch, old_logprobs=batch.old_logprobs - math.log(2.0)), default_root_dir=tmp_path)
    # +0.5 on 4 + 2 tokens, cut at 1.28; -0.5 on 2 + 2 tokens, not cut
    assert logged.metrics["policy/policy_loss"] == pytest.approx((-1.28 * 0.5 * 6 + 2.0 * 0.5 * 4) / 10, abs=1e-5)
    assert logged.metrics["policy/clip_fraction"] == pytest.approx(0.6)


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "token-sum"])
def test_micro_batches_give_the_gradient_of_the_whole(aggregation, tmp_path):
    settings = {"aggregation": aggregation, "kl_place": "loss", "critic": "shared", "entropy_weight": 0.1}
    found = []
    for parts in ([range(4)], [[0, 1], [2, 3]], [[0], [1, 2, 3]]):
        module = token_module(**settings)
        made = experience(module, partial(gae, gamma=1.0, lam=0.9))
        watch = train(module, *(micro(made, part) for part in parts), default_root_dir=tmp_path)
        found.append(watch.gradients)
    assert found[0].keys() == found[1].keys() == found[2].keys()
    for name, gradient in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(gradient, other[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("place", ["loss", "reward"])
def test_nothing_outside_the_mask_is_read(place, tmp_path):
    """Whatever a batch holds for tokens that the model did not write: loss and gradient are the same to the bit."""
    found = []
    for seed in (None, 0, 1):
        module = token_module(
            kl_place=place, critic="shared", entropy_weight=0.1, rollout_cap=2.0, value_clip=0.5
        )  # fmt: skip
        batch = micro(experience(module, partial(gae, gamma=1.0, lam=0.9)))
        assert not batch.mask.all()
        if seed is not None:
            rng, mask = np.random.default_rng(seed), batch.mask.numpy()
            names = ("rollout_logprobs", "old_logprobs", "advantages", "ref_logprobs", "old_values", "returns")
            noisy = {n: torch.from_numpy(perturb_given(getattr(batch, n).numpy(), mask, rng)) for n in names}
            assert all(not torch.equal(noisy[n], getattr(batch, n)) for n in names)
            batch = replace(batch, **noisy)
        found.append(train(module, batch, default_root_dir=tmp_path))
    assert all(g.isfinite().all() and g.any() for n, g in found[0].gradients.items() if "output" not in n)
    for other in found[1:]:
        assert other.metrics == found[0].metrics
        assert all(torch.equal(g, other.gradients[n]) for n, g in found[0].gradients.items())


def test_an_update_raises_good_answers(tmp_path):
    module = token_module(LORA)
    made = experience(module)
    before = made.old_logprobs
    trainer = lightning.Trainer(
        max_steps=3, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DataLoader([micro(made)] * 3, batch_size=None, num_workers=0))
    after = experience(module).old_logprobs
    change = (after - before).sum(-1)
    assert (change[[0, 3]] > 0).all()
    assert (change[[1, 2]] < 0).all()


def test_bfloat16_training_compares_like_with_like(tmp_path):
    """Under autocast the log-probabilities of before the update are computed under autocast, too."""
    module = token_module()

    class Rounds(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield micro(experience(module))

    watch = Watch()
    trainer = lightning.Trainer(
        max_steps=1, limit_train_batches=1, precision="bf16-mixed", accelerator="cpu", logger=False, callbacks=[watch],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DataLoader(Rounds(), batch_size=None, num_workers=0))
    assert watch.metrics["policy/approx_kl"] < 1e-6
    assert watch.metrics["policy/ratio_max"] == pytest.approx(1.0, abs=1e-4)


def test_what_was_told_is_logged_once(tmp_path):
    module = token_module()
    batch = micro(experience(module))
    module.told = {"rollout/turns": 2.5}
    assert train(module, batch, default_root_dir=tmp_path).metrics["rollout/turns"] == 2.5
    assert module.told == {}


def test_what_an_objective_lacks_is_said(tmp_path):
    plain = micro(experience(token_module()))
    with pytest.raises(ValueError, match="a critic needs values of before the update, and the samples have none"):
        train(token_module(critic="shared"), plain, default_root_dir=tmp_path)
    critic = token_module(critic="shared")
    with pytest.raises(ValueError, match="a critic needs targets, which gae and bilevel_gae give"):
        train(critic, micro(experience(critic)), default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="a KL in the loss needs log-probabilities of the initial model"):
        train(token_module(kl_place="loss"), plain, default_root_dir=tmp_path)
    with pytest.raises(RuntimeError, match="policy loss is nan in update 0: policy nan"):
        train(token_module(), replace(plain, advantages=plain.advantages * math.nan), default_root_dir=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl_place": "both"}, "kl_place is 'both': choose none, loss or reward"),
        ({"critic": "big"}, "critic is 'big': choose none, shared, detached or own"),
        ({"kl_kind": "k4"}, "kl_kind is 'k4': choose one of k1, k2, k3"),
        ({"kl_target": 0.1}, "kl_target=0.1 adapts the weight of a KL.*not none"),
        ({"kl_target": 0.0, "kl_place": "loss"}, "it must be positive"),
        ({"aggregation": "mean"}, "unknown loss aggregation 'mean'"),
        ({"aggregation_norm": 10.0}, "norm belongs to the aggregation seq-mean-token-sum-norm"),
        ({"aggregation": "seq-mean-token-sum-norm"}, "which needs it"),
    ],
)
def test_bad_objectives(changes, message):
    with pytest.raises(ValueError, match=message):
        TokenObjective(**{**OBJECTIVE, **changes})


def test_a_critic_model_belongs_to_its_critic():
    module = token_module()
    with pytest.raises(ValueError, match="a critic model belongs to critic=own"):
        TokenModule(small_llm(), small_llm(), objective=module.objective, optim=module.optim, temperature=1.0)


@pytest.mark.parametrize("critic", ["none", "shared", "detached", "own"])
def test_every_weight_is_in_one_group(critic):
    module = token_module(LORA if critic != "none" else None, critic=critic)
    groups = module.parameter_groups()
    grouped = [id(p) for group in groups for p in group["params"]]
    trained = [id(p) for p in module.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trained)
    if critic != "none":
        own = {id(p) for p in module.scorer.critic.parameters() if p.requires_grad}
        assert {id(p) for p in groups[-1]["params"]} == own
        assert groups[-1]["lr"] == 0.5
        assert all("lr" not in group for group in groups[:-1])


def test_the_writer_gets_the_policy_alone():
    module = token_module(LORA, critic="own")
    expected = {name for name, p in small_llm(lora=LORA).model.named_parameters() if p.requires_grad}
    assert set(module.trainable_state()) == expected
    kept = {"state_dict": {f"scorer.{name}": p for name, p in module.scorer.named_parameters()}}
    module.on_save_checkpoint(kept)
    assert len(kept["state_dict"]) == 2 + len(expected) + len(list(small_llm().model.parameters()))
    module.on_load_checkpoint(kept)
    with pytest.raises(RuntimeError, match="the checkpoint does not fit: 2 weights are on one side only"):
        token_module(LORA, critic="none").on_load_checkpoint(
            {**kept, "state_dict": {n: p for n, p in kept["state_dict"].items() if "trunk" not in n}}
        )
