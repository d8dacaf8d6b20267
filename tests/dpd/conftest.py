"""A local Ray cluster for all tests that need one, because its start takes seconds."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Start Ray with two CPUs, without its dashboard and its statistics of use."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'dpd[cluster]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_raylet_start_wait_time_s", "300")  # a busy machine needs more than 60
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=128 * 2**20,
        )
        yield
        ray.shutdown()
