import pytest

from ctx_export.core.errors import UserError
from ctx_export.evaluation.sweep import Spread, spread


def test_without_a_cluster_jobs_run_one_after_the_other():
    seen = []

    def job(number: int) -> int:
        seen.append(number)
        return number * number

    assert list(spread(job, [3, 1, 2], None)) == [9, 1, 4]
    assert seen == [3, 1, 2]


@pytest.mark.parametrize("text", ["local:", "local:0", "local:two"])
def test_a_number_of_processes_is_needed(text):
    with pytest.raises(UserError, match="write local:N"):
        list(spread(str, [1], Spread(dask=text)))


def test_a_scheduler_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="cannot be reached"):
        list(spread(str, [1], Spread(dask="tcp://127.0.0.1:1", timeout=0.2)))
