"""A local Ray cluster for the tests that need one, and runs without the report at their end."""

import logging
from collections.abc import Iterator

import pytest

from tests.toy.runs import unreported

ATTEMPTS = 10  # Ray gives its processes 15 seconds to start, which a busy machine exceeds


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Start Ray with two CPUs, without its dashboard and its statistics of use."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'dpd[cluster]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                ray.init(
                    num_cpus=2,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=128 * 2**20,
                )
                break
            except Exception:  # it has no class of its own
                ray.shutdown()
                if attempt == ATTEMPTS:
                    raise
        yield
        ray.shutdown()


@pytest.fixture
def no_report() -> Iterator[None]:
    """Leave out the report at the end of a run."""
    with unreported():
        yield
