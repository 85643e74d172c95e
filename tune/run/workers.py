"""A trial on several processes: workers of Ray Train, started by the trial's own function, one rank each.

The trial itself holds no CPU and no GPU; its workers hold theirs beside it, so that `share_out` limits how many trials
run at a time.  Reports do not go the way of `ray.train.report`, which runs ahead of what Tune has seen: the first rank
hands each one to a small actor and waits until Tune has answered.  A stop thus takes effect at the very row it was
decided on, as it does in a trial of one process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import ray
import ray.train
from ray import tune
from ray.exceptions import RayActorError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from altgrad.quantization.kernel.ranks import lost_another_rank
from tune.run.relay import Relay, ReportedResult

_POLL_SECONDS = 0.5  # between two looks whether the workers are still there
_BACKENDS = {"cpu": "gloo", "gpu": "cpu:gloo,cuda:nccl"}

Reporter = Callable[[ReportedResult], None]


class RankDied(RuntimeError):
    """A process of a trial has gone without an exception; the trial starts again from its checkpoint."""


def train_on_workers(train: Callable[[Any, Reporter], None], job: Any, workers: int, cpus: float, gpus: float) -> None:
    """Run `train(job, report)` on every rank of `workers` processes, each with some CPUs and GPUs.

    What the first rank reports goes to Tune.  Raises what a rank raised, RankDied where one died.
    """
    relay: Any = ray.remote(num_cpus=0)(Relay).remote()  # Ray adds `.remote` to each method, which no type says
    resources = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"train": train, "job": job, "relay": relay},
        torch_config=TorchConfig(backend=_BACKENDS["gpu" if gpus else "cpu"]),
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=bool(gpus), resources_per_worker=resources),
        # nothing of ours is kept there; the folder goes with Ray's session
        run_config=ray.train.RunConfig(
            name="workers",
            storage_path=os.path.join(tune.get_context().get_trial_dir(), "train"),
        ),
    )
    fitting = _Fit(trainer)
    fitting.start()
    while fitting.is_alive():
        result: ReportedResult | None = ray.get(relay.next.remote(_POLL_SECONDS))
        if result is not None:
            tune.report(result)  # does not return where Tune stops the trial; the workers go with this process
            relay.answer.remote()
    if fitting.error is not None:
        raise _reason(fitting.error)


class _Fit(threading.Thread):
    """`TorchTrainer.fit` beside the function that serves its reports."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="fit", daemon=True)
        self._trainer = trainer
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # for the trial's own thread, which raises it
            self.error = error


def _rank(parameters: dict[str, Any]) -> None:
    """One rank, in a process of its own that has joined the process group."""
    relay = parameters["relay"]

    def report(result: ReportedResult) -> None:
        try:
            ray.get(relay.report.remote(result))
        except RayActorError as error:  # the trial was stopped or lost: whoever did that writes how it ended
            raise SystemExit from error

    parameters["train"](parameters["job"], report)


def _reason(error: BaseException) -> BaseException:
    """The exception that explains why the workers failed: not that of a rank that only lost its peers."""
    if isinstance(error, ray.train.ControllerError):
        return error.controller_failure
    if not isinstance(error, ray.train.WorkerGroupError):
        return error
    failures = error.worker_failures
    raised = [failure for failure in failures.values() if not _died(failure) and not lost_another_rank(failure)]
    if raised:
        return raised[0]
    ranks = [str(rank) for rank, failure in failures.items() if _died(failure)]
    which = f"the process of rank {', '.join(ranks)}" if ranks else "the process of a rank"
    if any("running low on memory" in str(failure) for failure in failures.values()):  # so says Ray's memory monitor
        return RankDied(f"{which} was killed: its node ran low on memory")
    return RankDied(f"{which} died")


def _died(failure: BaseException) -> bool:
    """Whether a worker's failure is not an exception of its own but Ray's word that it does not answer."""
    return isinstance(failure, (RayActorError, WorkerHealthCheckFailedError))
