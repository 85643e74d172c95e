"""The training loop: same start and same data for every format, exact resumption, other people's models."""

import dataclasses

import pytest
import torch

from altgrad.quantization.kernel.round import FormatTensors, round_to_format
from altgrad.quantization.quantize import quantize_model
from altgrad.results import read_run
from altgrad.storage.folder import Folder
from altgrad.training import FormatExperimentRunner, TrainConfig, run_format_experiment
from altgrad.training.model import build_gpt
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import MICRO, TIMED, untimed


def records(config: TrainConfig) -> list[dict[str, float]]:
    trainer = Trainer(config)
    return [untimed(trainer.step().record) for _ in range(config.max_steps)]


def test_every_format_sees_the_same_initial_weights_and_batches(tmp_path):
    hashes = set()
    for name in ("BF16", "E4M3", "E7M0"):
        for master_weights in (True, False):
            config = MICRO.altered(format=name, master_weights=master_weights, max_steps=1)
            result = run_format_experiment(config, tmp_path / f"{name}-{master_weights}")
            info = read_run(result.folder).info
            hashes.add((info["initial_weights_hash"], info["batches_hash"]))
    assert len(hashes) == 1
    other = run_format_experiment(MICRO.altered(seed=1, max_steps=1), tmp_path / "other")
    info = read_run(other.folder).info
    assert (info["initial_weights_hash"], info["batches_hash"]) not in hashes
    assert info["initial_weights_hash"] != next(iter(hashes))[0] and info["batches_hash"] != next(iter(hashes))[1]


@pytest.mark.parametrize("name", ["E0M7", "E3M4", "E7M0"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_without_master_weights_every_weight_is_on_its_grid_after_every_step(name, rounding):
    trainer = Trainer(MICRO.altered(format=name, master_weights=False, update_rounding=rounding, max_steps=4))
    for _ in range(4):
        trainer.step()
        for layer in trainer.layers.values():
            scaled = layer.weight.detach() * layer.rounded_weight_and_scale()[2]
            fmt = FormatTensors.view(layer.site("weight").spec)
            assert torch.equal(round_to_format(scaled, fmt), scaled)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "E4M3"},
        {"format": "E5M2", "master_weights": False, "update_rounding": "stochastic"},
        {"format": "E4M3", "scaling": "delayed", "rounding": "stochastic"},
    ],
    ids=str,
)
def test_a_run_resumed_from_its_checkpoint_repeats_every_number(tmp_path, changes):
    config = MICRO.altered(**changes)
    straight = run_format_experiment(config, tmp_path / "straight")

    class Killed(BaseException):
        """Stands for a process that dies: nothing in the runner may catch it."""

    def die(report):
        if report.step >= 8:
            raise Killed

    cut = FormatExperimentRunner(config, Folder.at(tmp_path / "cut"), report=die, report_interval=1)
    with pytest.raises(Killed):
        cut.run()
    resumed = run_format_experiment(config, tmp_path / "cut")

    for table in ("steps", "layers", "tensors"):
        expected, found = (read_run(r.folder).table(table).to_pandas() for r in (straight, resumed))
        unequal = ["attempt", "time", *TIMED]
        columns = [column for column in expected.columns if column not in unequal]
        assert expected[columns].astype(str).equals(found[columns].astype(str)), table
    events = read_run(resumed.folder).table("events").to_pandas()
    assert "restore" in set(events.kind)
    assert dataclasses.replace(resumed, folder=straight.folder, run="", seconds=0) == dataclasses.replace(
        straight, run="", seconds=0
    )


def test_a_corrupt_newest_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path):
    config = MICRO
    folder = Folder.at(tmp_path / "run")

    def die(report):
        if report.step >= 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FormatExperimentRunner(config, folder, report=die, report_interval=1).run()
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    run_format_experiment(config, folder)
    events = read_run(folder).table("events").to_pandas()
    fallback = events[events.kind == "checkpoint_fallback"]
    assert (
        len(fallback) == 1
        and newest.name in fallback.detail.iloc[0]
        and '"resumed_from_step": 5' in fallback.detail.iloc[0]
    )
    straight = run_format_experiment(config, tmp_path / "straight")
    assert read_run(folder).table("steps")["loss"] == read_run(straight.folder).table("steps")["loss"]


def test_a_finished_run_is_never_overwritten_and_another_config_never_mixed_in(tmp_path):
    run_format_experiment(MICRO.altered(max_steps=2), tmp_path / "run")
    with pytest.raises(ValueError, match="has ended"):
        run_format_experiment(MICRO.altered(max_steps=2), tmp_path / "run")
    (tmp_path / "run" / "end.json").unlink()
    with pytest.raises(ValueError, match=r"another config \(format\)"):
        run_format_experiment(MICRO.altered(max_steps=2, format="E4M3"), tmp_path / "run")


def test_a_failing_run_is_recorded_as_failed_with_its_reason(tmp_path):
    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(2, 2)

        def forward(self, inputs, targets):
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        run_format_experiment(MICRO, tmp_path / "run", model=Broken())
    run = read_run(Folder.at(tmp_path / "run"))
    assert run.status == "failed" and run.end is not None and "out of luck" in run.end["summary"]["error"]


class Regression:
    """Somebody else's data: a linear map to learn."""

    vocabulary = None

    def training(self, step):
        x = torch.randn(32, 6, generator=torch.Generator().manual_seed(step))
        return x, x @ torch.arange(18.0).view(6, 3) / 10

    def validation(self):
        return [self.training(10_000)]

    def digest(self):
        return "regression"


class Net(torch.nn.Module):
    """Somebody else's model: its call is the loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))

    def forward(self, x, y):
        return torch.nn.functional.mse_loss(self.body(x), y)


def test_your_own_model_and_data_train_in_a_format(tmp_path):
    config = MICRO.altered(format="E4M3", max_steps=60, learning_rate=1e-2)
    result = run_format_experiment(config, tmp_path / "own", model=Net(), batches=Regression())
    losses = read_run(result.folder).table("steps")["loss"].to_pylist()
    assert losses[-1] < 0.5 * losses[0]
    assert set(read_run(result.folder).info["layers"]) == {"body.0", "body.2"}


def test_layer_formats_reach_the_layers_they_name():
    trainer = Trainer(MICRO.altered(format="E4M3", layer_formats={"lm_head": "BF16", "*.mlp.*": "E3M4"}))
    formats = {name: layer.format_of("weight").name for name, layer in trainer.layers.items()}
    assert formats["lm_head"] == "BF16" and formats["h.0.mlp.up"] == "E3M4" and formats["h.1.attn.qkv"] == "E4M3"
    with pytest.raises(ValueError, match="matches no layer"):
        Trainer(MICRO.altered(layer_formats={"nothing": "BF16"}))


def test_a_tied_head_is_one_parameter_before_and_after_the_swap():
    config = MICRO.altered(tied_head=True)
    model = build_gpt(config, 256)
    layers = quantize_model(model, config).layers
    assert layers["lm_head"].weight is model.wte.weight


def test_the_loss_falls_in_every_default_format():
    for name in ("BF16", "E4M3", "E7M0"):
        losses = [record["loss"] for record in records(MICRO.altered(format=name, max_steps=40, learning_rate=3e-3))]
        assert losses[-1] < losses[0] - 0.5, name


def test_a_run_goes_on_only_with_the_data_and_weights_it_began_with(tmp_path):
    """Refused in one line that says what changed, with every file of the folder as it was."""
    text = tmp_path / "text.txt"
    text.write_bytes(b"all work and no play makes jack a dull boy. " * 900)
    config = MICRO.altered(data=str(text), max_steps=6)

    def cut(**own) -> None:
        def die(report):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            FormatExperimentRunner(config, Folder.at(tmp_path / "run"), report=die, report_interval=3, **own).run()

    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    cut()
    before, content = files(), text.read_bytes()
    text.write_bytes(content[:-1000] + b"!" + content[-999:])  # near the end: held-out text
    with pytest.raises(ValueError, match=r"^[^\n]*other training data \(batches_hash [^\n]*$"):
        run_format_experiment(config, tmp_path / "run")
    assert files() == before
    text.write_bytes(content)
    model = build_gpt(config, 256)
    with torch.no_grad():
        model.ln_f.bias[0] = 1e-9
    with pytest.raises(ValueError, match=r"^[^\n]*other initial weights \(initial_weights_hash [^\n]*$"):
        run_format_experiment(config, tmp_path / "run", model=model)
    with pytest.raises(ValueError, match=r"another config \(learning_rate\)"):
        run_format_experiment(config.altered(learning_rate=1.0), tmp_path / "run")
    assert files() == before
    run_format_experiment(config, tmp_path / "run")
    assert read_run(Folder.at(tmp_path / "run")).status == "completed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="here a GPU would be used")
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_run_that_holds_a_gpu_does_not_train_on_the_cpu(device, tmp_path):
    config = MICRO.altered(device=device, max_steps=1)
    with pytest.raises(ValueError, match=r"^device='\w+': this run holds 0.5 GPU but [^\n]*$"):
        run_format_experiment(config, tmp_path / "run", resources={"cpus": 1.0, "gpus": 0.5})
    run_format_experiment(config, tmp_path / "run", resources={"cpus": 1.0, "gpus": 0.0})
    assert read_run(Folder.at(tmp_path / "run")).info["device"].startswith("cpu (")
