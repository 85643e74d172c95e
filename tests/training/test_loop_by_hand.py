"""The training loop against plain torch loops and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from altgrad.config.train_config import TrainConfig
from altgrad.experiment.checkpoints.checkpoint import delete_old, load_checkpoint, save_checkpoint
from altgrad.experiment.outcome import LossSummary
from altgrad.stability.protocol import StepState
from altgrad.storage.folder import Folder
from altgrad.training.data import TextBatches, load_corpus
from altgrad.training.model import build_gpt
from altgrad.training.optim import build_optimizer, learning_rate
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import SMALL


def plain_losses(config: TrainConfig) -> tuple[list[float], list[float], float]:
    """(training losses, gradient norms, last validation loss) of the config's model in a loop that uses torch alone."""
    model = build_gpt(config, 256)
    batches = TextBatches(load_corpus(config), config, config.shape.block_size)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    betas = config.beta1, config.beta2
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=config.adam_epsilon, fused=True)
    losses, norms = [], []
    for step in range(1, config.max_steps + 1):
        peak, warm = config.learning_rate, config.warmup_steps
        turn = (step - warm) / (config.max_steps - warm)
        rate = peak * step / warm if step <= warm else peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * turn)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(*batches.training(step))
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip or math.inf).item())
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        held_out = [(model(x, y), len(x)) for x, y in batches.validation()]
    total = sum(loss * rows for loss, rows in held_out)
    return losses, norms, (total / sum(rows for _, rows in held_out)).item()


@pytest.mark.parametrize("clip", [0.3, 2.0, 0.0])
@pytest.mark.parametrize("seed", [1, 2, 42])
def test_fifty_steps_in_fp32_are_bitwise_those_of_a_plain_torch_loop(seed, clip):
    config = SMALL.altered(
        format="FP32", seed=seed, gradient_clip=clip, max_steps=50, eval_interval=50, warmup_steps=5,
        learning_rate=3e-3, eval_batches=3,
    )  # fmt: skip
    trainer = Trainer(config)
    records = [trainer.step().record for _ in range(50)]
    losses, norms, validation = plain_losses(config)
    assert [record["loss"] for record in records] == losses
    assert [record["gradient_norm"] for record in records] == norms
    assert records[-1]["validation_loss"] == validation


def state_with(*gradients: torch.Tensor) -> StepState:
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    norm = torch.nn.utils.get_total_norm(list(gradients))
    return StepState(1, 1.0, float(norm), parameters, {}, norm)


@pytest.mark.parametrize("limit", [1e-5, 0.1, 4.999, 5.0, 5.000001, 5.1, 1e4])
def test_limiting_the_norm_is_torchs_clipping_bit_for_bit_and_the_norm_is_the_limit_afterwards(limit):
    gradients = torch.tensor([3.0, 0.0]), torch.tensor([[4.0], [0.0]])  # a norm of 5
    state, plain = state_with(*gradients), state_with(*gradients)
    state.limit_norm(limit)
    torch.nn.utils.clip_grad_norm_(plain.parameters, limit)
    for ours, theirs in zip(state.parameters, plain.parameters, strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    norm = math.hypot(float(state.parameters[0].grad[0]), float(state.parameters[1].grad[0]))
    assert norm == pytest.approx(min(limit, 5.0), rel=1e-6)
    assert state.gradient_norm == pytest.approx(norm, rel=1e-6) and float(state.norm) == pytest.approx(norm, rel=1e-6)


def test_two_limits_after_another_leave_the_smaller():
    state = state_with(torch.tensor([3.0, 4.0]))
    for limit in (2.0, 3.0, 0.5):
        state.limit_norm(limit)
    assert float(state.parameters[0].grad.norm()) == pytest.approx(0.5, rel=1e-5)


BY_HAND = SMALL.altered(learning_rate=1.0, warmup_steps=4, max_steps=12, min_learning_rate_ratio=0.1)


def test_the_learning_rate_of_every_step_is_that_of_the_schedule_by_hand():
    """Quarters up to step 4, then half a cosine: a quarter of the way down at step 6, half of it at step 8."""
    cosine = {1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0, 6: 0.86819805, 8: 0.55, 10: 0.23180195, 12: 0.1}
    for step, rate in cosine.items():
        assert learning_rate(BY_HAND, step) == pytest.approx(rate, rel=1e-7)
        assert learning_rate(BY_HAND.altered(schedule="constant"), step) == min(1.0, step / 4)
    assert learning_rate(BY_HAND.altered(warmup_steps=0, min_learning_rate_ratio=0.0), 12) == 0.0
    assert learning_rate(BY_HAND, 13) == learning_rate(BY_HAND, 20) == pytest.approx(0.1)  # who trains on stays there
    falling = [learning_rate(BY_HAND, step) for step in range(4, 13)]
    assert falling == sorted(falling, reverse=True)
    trainer = Trainer(BY_HAND)
    used = [trainer.step().record["learning_rate"] for _ in range(3)]
    assert used == [0.25, 0.5, 0.75] and {group["lr"] for group in trainer.optimizer.param_groups} == {0.75}


def test_adamw_by_hand_decays_matrices_and_nothing_else():
    model = nn.Sequential(nn.Linear(1, 1), nn.LayerNorm(1))
    fields = {"beta1": 0.5, "beta2": 0.75, "adam_epsilon": 0.25, "weight_decay": 0.125}
    optimizer = build_optimizer(model, BY_HAND.altered(**fields))
    for group in optimizer.param_groups:
        assert group["fused"], "one pass over all parameters; the last bits differ"
        group["lr"] = 0.5
    expected = []
    for parameter in model.parameters():
        nn.init.constant_(parameter, 2.0)
        value, first, second = 2.0, 0.0, 0.0
        for step, gradient in enumerate((1.0, -3.0), start=1):
            first, second = 0.5 * first + 0.5 * gradient, 0.75 * second + 0.25 * gradient**2
            decayed = value * (1 - 0.5 * 0.125) if parameter.ndim == 2 else value
            root = math.sqrt(second / (1 - 0.75**step))
            value = decayed - 0.5 * first / (1 - 0.5**step) / (root + 0.25)
        expected.append(value)
    for gradient in (1.0, -3.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    assert [parameter.item() for parameter in model.parameters()] == pytest.approx(expected, rel=1e-6)
    assert expected[0] != expected[1]


def test_frozen_parameters_are_not_the_optimizer_s():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    held = [p for group in build_optimizer(model, BY_HAND).param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters() if p is not model[0].weight}


@pytest.fixture
def numbered(tmp_path) -> tuple[TrainConfig, bytes]:
    """A text of 10000 bytes in which every window says where it stands."""
    content = "".join(f"{number:04d}," for number in range(2000)).encode()
    path = tmp_path / "numbers.txt"
    path.write_bytes(content)
    return SMALL.altered(data=str(path), block_size=16, batch_size=8, validation_fraction=0.2, eval_batches=5), content


def places(batch: tuple[torch.Tensor, torch.Tensor], content: bytes) -> list[int]:
    """Where the windows of a batch stand; each target is the byte after its input."""
    inputs, targets = batch
    assert inputs.shape == targets.shape == (len(inputs), 16) and inputs.dtype == targets.dtype == torch.int64
    found = []
    for row, following in zip(inputs.tolist(), targets.tolist(), strict=True):
        place = content.find(bytes([*row, following[-1]]))
        assert place >= 0 and bytes(following) == content[place + 1 : place + 17]
        found.append(place)
    return found


def test_batches_are_windows_of_the_training_text_and_targets_the_bytes_that_follow(numbered):
    config, content = numbered
    batches = TextBatches(load_corpus(config), config, 16)
    steps = [places(batches.training(step), content) for step in range(1, 301)]
    starts = [place for step in steps for place in step]
    assert max(starts) <= 8000 - 17 and min(starts) < 50 and max(starts) > 7900  # 8000 of 10000 bytes, all of them
    assert len({tuple(step) for step in steps}) == 300 and len(set(steps[0])) > 1
    assert places(batches.training(7), content) == steps[6]
    other = TextBatches(load_corpus(config), config.altered(seed=43), 16)
    assert places(other.training(7), content) != steps[6]


def test_validation_reads_the_held_out_text_from_its_first_byte_to_its_last(numbered):
    config, content = numbered
    held_out = [places(batch, content) for batch in TextBatches(load_corpus(config), config, 16).validation()]
    starts = [place for batch in held_out for place in batch]
    assert len(held_out) == 5 and len(starts) == 40
    assert starts[0] == 8000 and starts[-1] == 10000 - 17 and starts == sorted(starts)


class Dropped(nn.Module):
    """Half of its output is dropped while it trains."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(self.body(x), y)


class Unequal:
    """Held-out batches of 4 and 2 rows."""

    vocabulary = None

    def training(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        return x, x[:, :3]

    def validation(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        (a, b), (c, d) = self.training(100), self.training(101)
        return [(a, b), (c[:2], d[:2])]

    def digest(self) -> str:
        return ""


def test_validation_is_the_mean_over_rows_in_evaluation_mode_and_training_goes_on_in_training_mode():
    trainer = Trainer(SMALL.altered(format="FP32"), Dropped(), Unequal())
    loss = trainer.validation_loss()
    first, third = trainer.model.body[0], trainer.model.body[2]
    with torch.no_grad():
        rows = torch.cat([x for x, _ in Unequal().validation()])
        wanted = torch.cat([y for _, y in Unequal().validation()])
        hidden = rows @ first.weight.T + first.bias
        expected = ((hidden @ third.weight.T + third.bias - wanted) ** 2).mean()
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert trainer.model.training and all(part.training for part in trainer.model.modules())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_a_record_says_when_what_was_measured_and_counts_every_token():
    config = SMALL.altered(max_steps=7, eval_interval=3, diagnostic_interval=2, batch_size=3, block_size=8)
    trainer = Trainer(config)
    outcomes = [trainer.step() for _ in range(7)]
    assert [o.record["step"] for o in outcomes] == [1, 2, 3, 4, 5, 6, 7]
    assert [o.record["step"] for o in outcomes if "validation_loss" in o.record] == [3, 6, 7]
    assert [o.record["step"] for o in outcomes if "stall_rate" in o.record] == [2, 4, 6, 7]
    assert [bool(o.layers) for o in outcomes] == ["stall_rate" in o.record for o in outcomes]
    assert [o.record["tokens"] for o in outcomes] == [24 * step for step in range(1, 8)]
    spans = [o.record["elapsed_seconds"] for o in outcomes]
    assert spans == sorted(spans) and spans[0] > 0
    speeds = [24 / (late - early) for early, late in zip([0.0, *spans], spans, strict=False)]
    assert [o.record["tokens_per_second"] for o in outcomes] == pytest.approx(speeds, rel=1e-6)


def test_rates_of_a_whole_step_are_those_of_all_values_of_all_sites():
    """Against the layers' rows and the sizes that they are shares of (no operand here is zero)."""
    trainer = Trainer(SMALL.altered(format="E4M3", amax_factor=0.1, diagnostic_interval=1), Dropped().eval(), Unequal())
    trainer.model.eval()
    outcome = trainer.step()
    sizes = {("body.0", "weight"): 96, ("body.0", "activation"): 24, ("body.0", "gradient"): 64}
    sizes |= {("body.2", "weight"): 48, ("body.2", "activation"): 64, ("body.2", "gradient"): 12}
    rows = {(row["layer"], row["site"]): row for row in outcome.layers}
    for rate in ("overflow_rate", "underflow_rate", "saturation_rate"):
        mean = sum(rows[key][rate] * size for key, size in sizes.items()) / sum(sizes.values())
        assert outcome.record[rate] == pytest.approx(mean, rel=1e-6)
    assert outcome.record["overflow_rate"] > 0.05


def test_a_trifling_update_of_the_largest_weight_leaves_every_other_weight_where_it_is():
    """Without masters: 448 x 2^-k is the largest; a little more must not double the scale of the whole tensor."""
    config = SMALL.altered(format="E4M3", master_weights=False)
    trainer = Trainer(config)
    layer = trainer.layers["lm_head"]
    with torch.no_grad():
        top = layer.weight.abs().max()
        scale = 2.0 ** math.ceil(math.log2(float(top) / 448))
        layer.weight[0, 0] = 448 * scale
        small = 2.0**-9 * scale  # the smallest value: a doubled scale rounds it to zero
        layer.weight[1, :] = small
    before = layer.weight.detach().clone()

    def nudge() -> None:
        with torch.no_grad():
            layer.weight[0, 0] *= 1 + 1e-4

    trainer.optimizer.step = nudge
    trainer.step()
    assert torch.equal(layer.weight, before)


def test_the_write_back_draws_other_numbers_than_the_rounding_of_the_operand():
    """All weights lie halfway between two values: drawn alike, operand and stored weight would be the same."""
    config = SMALL.altered(format="E4M3", master_weights=False, update_rounding="stochastic", rounding="stochastic")
    trainer = Trainer(config)
    layer, drawn = trainer.layers["lm_head"], []

    def halfway() -> None:
        with torch.no_grad():
            layer.weight.fill_(1.0625)
        drawn.append(layer.rounded_weight())

    trainer.optimizer.step = halfway
    trainer.step()
    assert set(layer.weight.flatten().tolist()) == set(drawn[0].flatten().tolist()) == {1.0, 1.125}
    assert 0.45 < float((layer.weight == drawn[0]).float().mean()) < 0.55


def test_losses_of_a_result_by_hand():
    losses = LossSummary()
    assert (losses.final, losses.best, losses.validation) == (None, None, None)
    for record in ({"loss": 3.0, "validation_loss": 2.5}, {"loss": 1.0}, {"loss": math.nan}, {"loss": 2.0}):
        losses.add(record)
    assert (losses.final, losses.best, losses.validation) == (2.0, 1.0, 2.5)


def test_the_two_newest_checkpoints_are_kept_and_the_newest_that_verifies_is_read(tmp_path):
    folder = Folder.at(tmp_path)
    for step in (5, 100, 20):
        save_checkpoint(folder, step, {"step": step, "weight": torch.full((3,), float(step))})
        delete_old(folder)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name[:14] for name in names] == ["step-000000020", "step-000000100"]
    state, corrupt = load_checkpoint(folder)
    assert state is not None and state["step"] == 100 and state["weight"].tolist() == [100.0] * 3 and corrupt == []
    newest = tmp_path / names[1]
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    state, corrupt = load_checkpoint(folder)
    assert state is not None and state["step"] == 20 and corrupt == [names[1]]
