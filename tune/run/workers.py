"""Runs a trial on several processes: workers of Ray Train, one rank each, started by the trial's own function.

The trial itself reserves no CPU and no GPU, but each of its workers does.  Reports do not use `ray.train.report`, which
returns before Tune has seen the report.  Instead the first rank sends each report to a small actor and waits until Tune
has answered, so that a stop takes effect at the very row at which it was decided, as in a trial of one process.
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

from altgrad.quantization.kernel.ranks import lost_another_rank
from tune.cluster.ray_private import unhealthy_worker
from tune.run.relay import Relay, ReportedResult

_POLL_SECONDS = 0.5  # between two checks that the workers are alive
_BACKENDS = {"cpu": "gloo", "gpu": "cpu:gloo,cuda:nccl"}

Reporter = Callable[[ReportedResult], None]


class RankDied(RuntimeError):
    """A process of a trial ended without an exception; the trial starts again from its checkpoint."""


def train_on_workers(train: Callable[[Any, Reporter], None], job: Any, workers: int, cpus: float, gpus: float) -> None:
    """Run `train(job, report)` on `workers` processes, each with `cpus` CPUs and `gpus` GPUs.

    Reports of the first rank go to Tune.  Raises the exception that a rank raised, or RankDied if a rank died.
    """
    relay: Any = ray.remote(num_cpus=0)(Relay).remote()  # Ray adds `.remote` to each method, which no type says
    resources = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"train": train, "job": job, "relay": relay},
        torch_config=TorchConfig(backend=_BACKENDS["gpu" if gpus else "cpu"]),
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=bool(gpus), resources_per_worker=resources),
        # a temporary folder of Ray's session, in which nothing of ours is kept
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
            tune.report(result)  # does not return if Tune stops the trial; the workers end with this process
            relay.answer.remote()
    if fitting.error is not None:
        raise _reason(fitting.error)


class _Fit(threading.Thread):
    """A thread for `TorchTrainer.fit`, while the trial's own thread passes on the reports."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="fit", daemon=True)
        self._trainer = trainer
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # the trial's own thread raises it
            self.error = error


def _rank(parameters: dict[str, Any]) -> None:
    """One rank, in a process that Ray Train has joined to the process group."""
    relay = parameters["relay"]

    def report(result: ReportedResult) -> None:
        try:
            ray.get(relay.report.remote(result))
        except RayActorError as error:  # the trial was stopped or lost, and the driver writes its end record
            raise SystemExit from error

    parameters["train"](parameters["job"], report)


def _reason(error: BaseException) -> BaseException:
    """The exception that caused the failure of the workers, not that of a rank that only lost its peers."""
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
    if any("running low on memory" in str(failure) for failure in failures.values()):  # Ray's memory monitor says it
        return RankDied(f"{which} was killed: its node ran low on memory")
    return RankDied(f"{which} died")


def _died(failure: BaseException) -> bool:
    """Whether a worker's failure is not an exception of its own but Ray's word that it does not answer."""
    return isinstance(failure, (RayActorError, unhealthy_worker()))
