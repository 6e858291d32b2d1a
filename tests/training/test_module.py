"""The training loss, noise, streams, and the learning rate."""

from types import SimpleNamespace

import pytest
import torch

from babble.cli import build_config
from babble.codec.frames import MODES
from babble.data.loaders import Batch
from babble.model.babbler import Babbler
from babble.model.config import ModelConfig
from babble.training.config import OptimConfig
from babble.training.module import AHEAD_WEIGHT, BabbleModule, lr_factor, replace_levels

MODE = MODES["1300"]
# In a step whose metrics are not logged.
TRAINER = SimpleNamespace(global_step=0, log_every_n_steps=2)


def _speech(frames: int, batch: int = 1) -> torch.Tensor:
    return (torch.rand(batch, frames, MODE.num_fields) * torch.tensor(MODE.levels)).long()


def _model(head: str) -> Babbler:
    torch.manual_seed(0)
    return Babbler(ModelConfig(num_layers=2, units=8, head=head), MODE)


def test_the_loss_can_include_only_the_last_step():
    windows = _speech(12, batch=3)
    config = ModelConfig(num_layers=1, units=4, head="regression")
    losses = {}
    for steps in ("all", "last"):
        torch.manual_seed(0)
        trained = BabbleModule(config, MODE, OptimConfig(loss_steps=steps))
        trained.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
        trained.trainer = TRAINER  # type: ignore[assignment]
        losses[steps] = trained.training_step(Batch(windows, torch.ones(3, dtype=torch.bool)), 0)
        hidden_BTH, _ = trained.model(windows[:, :-1])
        cost = trained.model.head.loss(hidden_BTH, windows[:, 1:])
        torch.testing.assert_close(losses[steps], cost.mean() if steps == "all" else cost[:, -1].mean())
    assert losses["all"] != losses["last"]


def _untrained(config: ModelConfig, optim: OptimConfig | None = None) -> BabbleModule:
    torch.manual_seed(0)
    made = BabbleModule(config, MODE, optim or OptimConfig())
    made.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    made.trainer = TRAINER  # type: ignore[assignment]
    return made


def test_streams_carry_their_state_and_start_anew_if_the_batch_says_so():
    speech = _speech(13, batch=2)
    trained = _untrained(ModelConfig(num_layers=2, units=6))
    first, second = speech[:, :7], speech[:, 6:]
    trained.training_step(Batch(first, torch.tensor([True, True])), 0)
    loss = trained.training_step(Batch(second, torch.tensor([False, True])), 1)
    model = trained.model
    carried, _ = model(speech[:1, :-1])
    fresh, _ = model(second[1:, :-1])
    by_hand = model.head.loss(torch.cat([carried[:, 6:], fresh]), second[:, 1:]).mean()
    torch.testing.assert_close(loss, by_hand)


def test_frames_further_ahead_have_heads_of_their_own():
    speech = _speech(9, batch=2)
    trained = _untrained(ModelConfig(num_layers=1, units=6, frames_ahead=3))
    loss = trained.training_step(Batch(speech, torch.tensor([True, True])), 0)
    hidden_BTH, _ = trained.model(speech[:, :-1])
    by_hand = trained.model.head.loss(hidden_BTH, speech[:, 1:]).mean()
    for further, head in enumerate(trained.model.heads_ahead, 1):
        # Step t predicts frame t + 1, so frame t + 1 + further is `further` ahead of it.
        by_hand = by_hand + AHEAD_WEIGHT * head.loss(hidden_BTH[:, : 8 - further], speech[:, 1 + further :]).mean()
    torch.testing.assert_close(loss, by_hand)


def test_noise_replaces_a_share_of_the_levels_by_levels_of_the_same_field():
    torch.manual_seed(0)
    frames = torch.arange(40 * 50 * 4).view(40, 50, 4)
    noisy = replace_levels(frames, 0.25)
    # 8,000 levels: four standard errors are 0.02.
    assert (noisy != frames).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert (noisy % 4 == frames % 4).all()
    assert replace_levels(frames, 0.0) is frames


def test_the_learning_rate_is_a_function_of_the_step():
    constant = OptimConfig(warmup_steps=3)
    assert [lr_factor(step, constant, None) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    cosine = OptimConfig(schedule="cosine")
    assert [round(lr_factor(step, cosine, 4), 3) for step in range(6)] == [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]


@pytest.mark.parametrize("name", ["nadam", "adamw", "rmsprop", "sgd"])
def test_every_optimizer_uses_the_learning_rate(name: str):
    config = ModelConfig(num_layers=1, units=4)
    made = BabbleModule(config, MODE, OptimConfig(name=name, lr=0.123)).configure_optimizers()
    assert made.param_groups[0]["lr"] == 0.123
    assert type(made).__name__.lower() == name


def test_nadam_has_the_defaults_of_2017():
    made = BabbleModule(ModelConfig(num_layers=1, units=4), MODE, OptimConfig()).configure_optimizers()
    assert made.defaults["lr"] == 0.002
    assert made.defaults["betas"] == (0.9, 0.999)
    assert made.defaults["momentum_decay"] == 0.004


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adam"}, "name adam: expected one of nadam, adamw, rmsprop, sgd; did you mean"),
        ({"lr": 0.0}, "optim.lr=0.0: must be above 0"),
        ({"schedule_steps": 5}, "optim.schedule_steps has no effect"),
        ({"warmup_steps": -1}, "optim.warmup_steps=-1: must be at least 0"),
        ({"schedule": "cosine", "schedule_steps": -5}, "optim.schedule_steps=-5: must be above optim.warmup_steps=0"),
        ({"schedule": "cosine", "schedule_steps": 5, "warmup_steps": 5}, "must be above optim.warmup_steps=5"),
    ],
)
def test_invalid_settings_and_those_without_effect_are_rejected(settings: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        build_config(OptimConfig, settings)
