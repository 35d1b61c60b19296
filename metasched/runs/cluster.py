"""Independent inner runs on the nodes of a Ray cluster that is already there: the numbers of one process.

    ray start --head                               # on one machine, once; the others: ray start --address HEAD:6379
    metasched train CONFIG --run.where ray         # on any machine of the cluster

Each inner run is a task of Ray, on one core with one thread, or on one GPU. Where a node dies, Ray gives its runs to
another node; being functions of their arguments, they end with the same bits. The process that was started writes,
speaks and keeps all results; the nodes need the same version of metasched, and the data and packages of the experiment
at the same paths.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import torch

from metasched.core.errors import MetaschedError
from metasched.core.extras import from_extra
from metasched.io.environment import INNER_THREADS
from metasched.runs.by_value import answered, packed, result


class Cluster:
    """The cores, or GPUs, of a Ray cluster; a context manager, and a Mapper.

    Args:
        device: torch device of the inner runs; on ``cuda`` each has a GPU to itself.

    Attributes:
        workers: how many runs the cluster does at once.

    Raises:
        MetaschedError: (on entering) Ray is not installed, no cluster can be reached, or it has no such device.
    """

    def __init__(self, device: str) -> None:
        self._resource = "GPU" if torch.device(device).type == "cuda" else "CPU"
        self.workers = 0

    def __enter__(self) -> Cluster:
        with from_extra("ray"):
            import ray
        try:
            ray.init("auto", log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
        except (ConnectionError, OSError, ValueError) as error:
            why = str(error).partition("\n")[0].rstrip(".")
            fix = "start one with `ray start --head`, or name it in the environment variable RAY_ADDRESS"
            raise MetaschedError("run.where", f"no Ray cluster can be reached ({why})", fix) from None
        self.workers = int(ray.cluster_resources().get(self._resource, 0))
        if not self.workers:
            ray.shutdown()
            problem = f"the Ray cluster has no {self._resource}"
            raise MetaschedError("run.where", problem, "add a node that has one, or set run.device")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        ray.shutdown()  # leaves the cluster, which ends what it still does for this process

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """``function(*a)`` for each ``a``, in order, as they become ready."""
        import ray

        needs: dict[str, Any] = {"num_gpus": 1} if self._resource == "GPU" else {"num_cpus": 1}
        # a run that a dying node takes along is done again, however often; an error of the run itself is an answer
        run = ray.remote(**needs, max_retries=-1)(_on_a_node)
        refs = [run.remote(packed(function, a), torch.get_default_dtype()) for a in arguments]
        return (result(_fetched(ref)) for ref in refs)


def _fetched(ref: Any) -> bytes:
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(ref)
    except RayError as error:
        why = str(error).partition("\n")[0].rstrip(".")
        raise MetaschedError("run.where", f"a run was lost in the Ray cluster ({why})", "see Ray's own logs") from error


def _on_a_node(work: bytes, dtype: torch.dtype) -> bytes:
    torch.set_num_threads(INNER_THREADS)
    torch.set_default_dtype(dtype)
    return answered(work)
