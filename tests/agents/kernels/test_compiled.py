"""Compilation: kept on disk where that is possible, and announced once."""

from __future__ import annotations

from pathlib import Path

import pytest
from numba.core import caching

from dpd.agents.kernels.compiled import NUMBA_CONFIG, announced, compiled


def twice(x: float) -> float:
    return 2 * x


def test_without_a_place_for_the_cache_functions_compile_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: object) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr(caching._CacheLocator, "ensure_cache_path", refuse)
    assert compiled(twice)(4.0) == 8.0


def test_a_compilation_is_announced_once_and_a_cached_result_not_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(NUMBA_CONFIG, "CACHE_DIR", str(tmp_path))
    said: list[str] = []
    for _ in range(2):  # two functions: the second is read from the first one's file
        function = compiled(twice)
        with announced(lambda: said.append("compiling")):
            assert function(4.0) == 8.0 and function(4) == 8
    assert said == ["compiling"]


def test_every_change_of_a_kernel_has_a_cache_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dpd.agents.kernels.compiled.HERE", tmp_path)
    places = set()
    for text in ("a = 1", "a = 2", "a = 2"):
        (tmp_path / "kernel.py").write_text(text)
        places.add(compiled(twice).stats.cache_path)
    assert len(places) == 2 and NUMBA_CONFIG.CACHE_DIR == ""
