import lightning
import pytest
import torch
from small_llm import small_llm
from torch.utils.data import DataLoader

from priorzero.policy.language_module import PolicyOptim
from priorzero.policy.load import LoraSettings
from priorzero.policy.logprobs import answer_logprobs
from priorzero.policy.module import PolicyLossConfig, PolicyModule
from priorzero.policy.packing import pack
from priorzero.prior.llm import LLMPrior
from priorzero.rl.policy_loss import action_logprobs
from priorzero.text.prompt import PromptBuilder, PromptConfig
from priorzero.types import Observation, PolicyBatch, Situation

LORA = LoraSettings(r=4, alpha=8, dropout=0.0, target_modules="all-linear")
TOKENS = [[5, 9, 11, 40, 7], [8, 9, 10]]
ANSWERS = [[[20, 21, 2], [30, 2], [22, 23, 24, 2]], [[33, 2], [34, 35, 2]]]
PROMPTS = pack(TOKENS, ANSWERS, pad_id=0)
LOSS = {
    "sft_weight": 1.0,
    "sft_kind": "listwise",
    "rft_weight": 0.0,
    "rft_kind": "reinforce",
    "importance_cap": None,
    "clip_low": 0.2,
    "clip_high": 0.28,
    "kl_weight": 0.0,
    "kl_kind": "exact",
    "kl_target": None,
    "kl_horizon": 100,
    "entropy_weight": 0.0,
    "temperature": 1.0,
    "normalise_length": False,
}
OPTIM = {
    "lr": 1e-2,
    "betas": (0.9, 0.95),
    "weight_decay": 0.0,
    "warmup_updates": 0,
    "total_updates": 1000,
    "min_lr_ratio": 0.1,
}


def build(lora=LORA, optim=(), **loss):
    return PolicyModule(
        small_llm(lora=lora), loss=PolicyLossConfig(**{**LOSS, **loss}), optim=PolicyOptim(**{**OPTIM, **dict(optim)})
    )


def batch(**changes):
    fields = {
        "prompts": PROMPTS,
        "visit_probs": torch.tensor([[0.1, 0.8, 0.1], [0.75, 0.25, 0.0]]),
        "action": torch.tensor([2, 1]),
        "advantage": torch.tensor([1.0, 1.0]),
        "behaviour_logprobs": torch.tensor([-1.0, -1.0]),
        "weight": torch.tensor([1.0, 1.0]),
    }
    return PolicyBatch(**{**fields, **changes})


def policy_of(module):
    with torch.no_grad():
        return action_logprobs(*answer_logprobs(module.scorer.model, PROMPTS), 1.0, False)


def trainer(folder, steps, **options):
    return lightning.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


def loader(one):
    return DataLoader([one] * 4, batch_size=None, num_workers=0)


@pytest.fixture(autouse=True)
def quiet():
    torch.manual_seed(0)


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # torch 2.13 under lightning 2.6
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("kind", ["listwise", "text"])
def test_sft_moves_the_policy_to_the_visits(tmp_path, lora, kind):
    module = build(lora, optim={"lr": 3e-3 if lora is None else 2e-2}, sft_kind=kind)
    runner = trainer(tmp_path, 40)
    visits = batch().visit_probs
    before = policy_of(module)
    runner.fit(module, loader(batch()))
    after = policy_of(module)
    assert runner.global_step == 40
    kl = [(visits * (visits.clamp(min=1e-9).log() - p.masked_fill(visits == 0, 0))).sum(-1) for p in (before, after)]
    assert (kl[1] < 0.3 * kl[0]).all()
    assert runner.callback_metrics["policy/top1_agreement"] == 1
    assert {"policy/loss", "policy/sft", "policy/rft", "policy/entropy", "policy/logp_action"} <= set(
        runner.callback_metrics
    )


@pytest.mark.parametrize("kind", ["reinforce", "ppo"])
def test_rft_raises_good_actions_and_lowers_bad_ones(tmp_path, kind):
    module = build(sft_weight=0.0, rft_weight=1.0, rft_kind=kind, importance_cap=2.0 if kind == "reinforce" else None)
    before = policy_of(module)
    played = before.gather(-1, batch().action[:, None]).squeeze(-1)
    rewarded = batch(advantage=torch.tensor([1.0, -1.0]), behaviour_logprobs=played)
    trainer(tmp_path, 5).fit(module, loader(rewarded))
    after = policy_of(module)
    assert after[0, 2] > before[0, 2] + 0.01
    assert after[1, 1] < before[1, 1] - 0.01


@pytest.mark.parametrize("lora", [None, LORA])
def test_kl_is_zero_at_the_start_and_holds_the_policy_back(tmp_path, lora):
    results = {}
    for weight in (1e-9, 30.0):
        module = build(lora, optim={"lr": 1e-3}, kl_weight=weight)
        start = policy_of(module)
        runner = trainer(tmp_path, 1)
        runner.fit(module, loader(batch()))
        assert runner.callback_metrics["policy/kl"] == pytest.approx(0.0, abs=1e-6)
        runner.fit_loop.epoch_loop.max_steps += 20
        runner.fit(module, loader(batch()))
        end = policy_of(module)
        results[weight] = (start.exp() * (start - end)).nan_to_num().sum()
    assert results[30.0] < 0.5 * results[1e-9]


def test_full_reference_is_no_submodule_and_does_not_move(tmp_path):
    module = build(None, kl_weight=0.1)
    frozen = next(module._frozen[0].parameters()).clone()
    assert not any("_frozen" in name for name in module.state_dict())
    trainer(tmp_path, 3).fit(module, loader(batch()))
    assert torch.equal(frozen, next(module._frozen[0].parameters()))
    assert not torch.equal(frozen, next(module.parameters()))
    assert build(None)._frozen == []
    assert build(LORA, kl_weight=0.1)._frozen == []


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimators_of_the_played_action(tmp_path, kind):
    module = build(kl_weight=0.1, kl_kind=kind)
    runner = trainer(tmp_path, 3)
    runner.fit(module, loader(batch()))
    assert runner.callback_metrics["policy/kl"].abs() > 0


def test_adaptive_kl_weight_is_saved(tmp_path):
    module = build(kl_weight=0.1, kl_target=1e-3)
    runner = trainer(tmp_path, 8)
    runner.fit(module, loader(batch()))
    assert module.kl.coefficient != 0.1
    runner.save_checkpoint(tmp_path / "a.ckpt")
    again = build(kl_weight=0.1, kl_target=1e-3)
    again.on_load_checkpoint(torch.load(tmp_path / "a.ckpt", weights_only=True))
    assert again.kl.coefficient == module.kl.coefficient


def test_two_fits_keep_the_optimizer(tmp_path):
    module = build()
    runner = trainer(tmp_path, 3)
    runner.fit(module, loader(batch()))
    runner.fit_loop.epoch_loop.max_steps += 3
    runner.fit(module, loader(batch()))
    state = module.configure_optimizers()["optimizer"].state
    assert {int(s["step"]) for s in state.values()} == {6}
    assert module.configure_optimizers()["lr_scheduler"]["scheduler"].last_epoch == 6
    assert runner.global_step == 6


def test_accumulated_micro_batches_equal_one_batch(tmp_path):
    def row(i):
        one = pack(TOKENS[i : i + 1], ANSWERS[i : i + 1], pad_id=0)
        fields = ("visit_probs", "action", "advantage", "behaviour_logprobs", "weight")
        width = int(PROMPTS.candidates[i])
        cut = {name: getattr(batch(), name)[i : i + 1] for name in fields}
        return batch(**{**cut, "visit_probs": cut["visit_probs"][:, :width]}, prompts=one)

    whole, split = build(optim={"lr": 1e-3}), build(optim={"lr": 1e-3})
    split.load_state_dict(whole.state_dict())  # adapters start at random
    trainer(tmp_path, 1).fit(whole, loader(batch()))
    data = DataLoader([row(0), row(1)], batch_size=None)
    trainer(tmp_path, 1, accumulate_grad_batches=2).fit(split, data)
    torch.testing.assert_close(policy_of(split), policy_of(whole), atol=1e-4, rtol=0)


@pytest.mark.parametrize("lora", [None, LORA])
def test_checkpoint_holds_trainable_weights_and_restores_the_scores(tmp_path, lora):
    module = build(lora)
    runner = trainer(tmp_path, 4)  # an epoch of 4
    runner.fit(module, loader(batch()))
    runner.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert len(saved["state_dict"]) == len(module.trainable_state())
    if lora:
        assert all("lora_" in name for name in saved["state_dict"])
    again = build(lora)
    resumed = trainer(tmp_path, 5)
    resumed.fit(again, loader(batch()), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    runner.fit_loop.epoch_loop.max_steps += 1
    runner.fit(module, loader(batch()))
    assert resumed.global_step == 5
    torch.testing.assert_close(policy_of(again), policy_of(module), atol=1e-6, rtol=0)
    with pytest.raises(RuntimeError, match="does not fit"):
        build(None if lora else LORA).on_load_checkpoint(saved)


@pytest.mark.parametrize("lora", [None, LORA])
def test_prior_takes_the_trained_weights(tmp_path, lora):
    module, copy = build(lora), small_llm(lora=lora)
    trainer(tmp_path, 3).fit(module, loader(batch()))
    config = PromptConfig(
        format="plain",
        history_steps=0,
        max_tokens=500,
        show=("feedback", "look", "inventory"),
        show_valid_actions=False,
        show_rewards=False,
        truncate_observation=False,
        system=None,
    )
    prompts = PromptBuilder(copy.tokenizer, config)
    options = {
        "temperature": 1.0,
        "normalise_length": False,
        "cache_size": 0,
        "row_tokens": 256,
        "max_batch_tokens": 1000,
        "cuda_graphs": False,
        "compiled": False,
    }
    prior = LLMPrior(copy, prompts, **options)
    state = module.trainable_state()
    prior.load_weights(state, version=1)
    situation = Situation(Observation("A hall."), ("go north", "look"))
    packed = pack([prompts.prompt(situation)], [prompts.answers(situation.valid_actions)], copy.pad_id)
    with torch.no_grad():
        want = action_logprobs(*answer_logprobs(module.scorer.model, packed), 1.0, False)[0]
    torch.testing.assert_close(torch.from_numpy(prior.score([situation]).logprobs[0]), want, atol=1e-5, rtol=0)
    before = {name: p.clone() for name, p in state.items()}
    trainer(tmp_path, 3).fit(module, loader(batch()))
    assert all(torch.equal(state[name], before[name]) for name in state)  # copies, not views


def test_weight_decay_on_matrices_only():
    full = build(None, optim={"weight_decay": 0.1}).configure_optimizers()["optimizer"]
    assert [(g["weight_decay"], {p.ndim for p in g["params"]}) for g in full.param_groups] == [(0.1, {2}), (0.0, {1})]
    adapters = build(LORA).configure_optimizers()["optimizer"]
    assert [{p.ndim for p in g["params"]} for g in adapters.param_groups] == [{2}]


def test_learning_rate_schedule():
    optim = PolicyOptim(**{**OPTIM, "warmup_updates": 4, "total_updates": 12})
    got = [optim.factor(u) for u in (0, 1, 3, 4, 8, 12, 100)]
    assert got == pytest.approx([0.25, 0.5, 1.0, 1.0, 0.55, 0.1, 0.1])


def test_padding_samples_do_not_count(tmp_path):
    module = build(rft_weight=1.0)
    module.log = module.log_dict = lambda *a, **k: None
    with_padding = batch(weight=torch.tensor([1.0, 0.0]), advantage=torch.tensor([1.0, 1e6]))
    other = batch(weight=torch.tensor([1.0, 0.0]), advantage=torch.tensor([1.0, -3.0]))
    assert module.training_step(with_padding, 0).item() == pytest.approx(module.training_step(other, 0).item())


def test_nan_stops_the_run(tmp_path):
    module = build(rft_weight=1.0)
    broken = batch(advantage=torch.tensor([float("nan"), 1.0]))
    with pytest.raises(RuntimeError, match=r"policy loss is nan in update 0: .*rft nan"):
        trainer(tmp_path, 1).fit(module, loader(broken))


def test_refusals():
    with pytest.raises(ValueError, match="kl_kind"):
        PolicyLossConfig(**{**LOSS, "kl_kind": "k9"})
    with pytest.raises(ValueError, match="temperature"):
        PolicyLossConfig(**{**LOSS, "temperature": 0.0})
