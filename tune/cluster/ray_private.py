"""All that is taken from inside Ray, without a promise that it stays: what each piece is for and what it stands in for.

Nothing else here imports a private name of Ray.  A test asks for every piece and says in words which has gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def own_processes() -> Mapping[str, list[Any]]:
    """The processes of the Ray that this process started, by kind; Ray has no public way to ask for them.

    They are watched because Ray tells the death of its raylet or GCS late, or not at all.
    """
    return dict(_worker()._global_node.all_processes)


def keep_quiet() -> None:
    """Print nothing that workers print or that Ray has to say of their deaths: twenty lines of log for one fact.

    `log_to_driver=False` silences workers, but not what Ray itself has to say.
    """
    _worker().print_to_stdstream = lambda *arguments, **options: None


def silent_progress() -> Any:
    """A callback of Tune in place of its own, which calls a trial that failed before its first report `completed`.

    Tune leaves out its own only if it is given one of that class, whatever `verbose` says.
    """
    from ray.tune.progress_reporter import TrialProgressCallback

    class Silent(TrialProgressCallback):
        def _silent(self, *arguments: Any, **words: Any) -> None:
            pass

        on_trial_result = on_trial_error = on_trial_complete = _silent

    return Silent()


def send_no_keys_of_the_cloud() -> None:
    """Let Tune not copy AWS keys from this process's environment into what it tells Ray, which writes it to its logs.

    Tune has no option for that.  Processes of a Ray of our own inherit the keys; those of a cluster have their nodes'.
    """
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}


def token_headers() -> dict[str, str]:
    """The headers that carry Ray's token, where token authentication is on; the public client sends them itself.

    Needed for the one request that is made before that client, which would wait for minutes where nothing answers.
    """
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    return dict(get_auth_headers_if_auth_enabled({}))


def use_token() -> None:
    """Let Ray send its token where there is one: $RAY_AUTH_TOKEN, $RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def unhealthy_worker() -> type[Exception]:
    """What Ray Train raises for a worker that no longer answers its health checks; it has no public class for it."""
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    found: type[Exception] = WorkerHealthCheckFailedError
    return found


def _worker() -> Any:
    import ray

    return ray._private.worker
