"""Independent jobs one after the other in this process, or spread over machines with Dask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from ctx_export.core.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")

_LOCAL = "local:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Where jobs run: `dask` is a scheduler's address (tcp://host:8786), or local:N for N
    processes here. Paths must mean the same on every worker."""

    dask: str
    timeout: float = 10.0  # seconds to wait for a scheduler

    @property
    def processes(self) -> int | None:
        """N of local:N, None for a scheduler's address; raises UserError for no number."""
        if not self.dask.startswith(_LOCAL):
            return None
        count = self.dask[len(_LOCAL) :]
        if not count.isdigit() or int(count) < 1:
            raise UserError(f"dask is {self.dask!r}: write local:N with N of at least 1")
        return int(count)


def spread(
    function: Callable[[Job], Result], jobs: Sequence[Job], how: Spread | None
) -> Iterator[Result]:
    """Results as they come, in any order. `function` must be importable by name."""
    if how is None:
        yield from map(function, jobs)
        return
    with _client(how) as client:
        from distributed import as_completed

        futures = client.map(function, list(jobs), pure=False)
        for future in as_completed(futures):
            yield future.result()


@contextmanager
def _client(how: Spread) -> Iterator[Any]:
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise UserError(
            "spreading over workers needs Dask: pip install 'ctx-export[sweep]', or leave --dask "
            "out"
        ) from None
    count = how.processes
    if count is not None:
        with (
            LocalCluster(
                n_workers=count, threads_per_worker=1, processes=True, dashboard_address=None
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = Client(how.dask, timeout=how.timeout)
    except (OSError, ValueError) as error:
        raise UserError(
            f"dask scheduler {how.dask} cannot be reached: {error}; start one with dask scheduler"
        ) from None
    with client:
        yield client
