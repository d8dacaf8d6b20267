"""A policy in C acts as the policy does, compiled as strictly as a controller's code is."""

import shutil
import subprocess
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dpd.errors import BadInput
from dpd.policies.c_source import c_source, compile_library, identifier, quantize, read_c
from dpd.policies.policyfile import Policy, probes
from tests.dpd.test_export import HALF, policy

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

KINDS: list[dict[str, Any]] = [
    {},
    {"activation": "relu"},
    {"activation": "elu", "tanh_mean": True},
    {"norm_obs": False, "hidden": (33, 7, 16)},
    {"squashed": True, "hidden": (8,)},
]


def in_c(made, tmp_path, quantized=False):
    """Write a policy as C, compile it and return it."""
    path = tmp_path / "walker.c"
    path.write_text(c_source(made, "walker", quantized))
    return read_c(path)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_it_acts_as_the_policy(tmp_path, changes):
    made = policy(**changes)
    obs = probes(made)
    difference = np.abs(in_c(made, tmp_path)(obs) - made.act(obs)) / HALF
    assert difference.max() < 1e-5


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_eight_bits_act_nearly_as_the_policy(tmp_path, changes):
    made = policy(**changes)
    obs = probes(made)
    difference = np.abs(in_c(made, tmp_path, quantized=True)(obs) - made.act(obs)) / HALF
    assert 0 < difference.mean() < 0.01


def test_rounded_weights_lie_within_half_a_step():
    weight = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    layer = quantize(weight, np.zeros(3, np.float32))
    assert layer.scale is not None
    assert np.abs(layer.weight).max() == 127
    assert (np.abs(layer.weight * layer.scale - weight) <= 0.5001 * layer.scale).all()
    # 20 products of 127 and 2^15 - 1 fit into 32 bits; of 1,000 inputs 2^31 / 127,000 = 16,909
    assert layer.levels == "3.27670000e+04f"
    assert quantize(np.ones((1000, 1), np.float32), np.zeros(1)).levels == "1.69080000e+04f"


@pytest.mark.parametrize("quantized", [False, True])
def test_a_strict_compiler_has_nothing_to_say(tmp_path, quantized):
    for changes in KINDS:
        path = tmp_path / "p.c"
        path.write_text(c_source(policy(**changes), "p", quantized))
        strict = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-ffreestanding", "-nostdlib"]
        compile_library(path, tmp_path / "p.so", *strict)


def test_a_file_needs_no_library(tmp_path):
    path = tmp_path / "p.c"
    path.write_text(c_source(policy(), "p"))
    subprocess.run(["cc", "-std=c99", "-c", path, "-o", tmp_path / "p.o"], check=True)
    listed = subprocess.run(["nm", "-u", tmp_path / "p.o"], capture_output=True, text=True)
    undefined = listed.stdout.split()[1::2]
    assert set(undefined) <= {"_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}


def test_what_a_policy_file_says_cannot_leave_the_comment():
    made = policy()
    evil = replace(made.meta, env_id="*/ int evil; /*", provenance={"*/ int x;": "*/ int y;"})
    text = c_source(Policy(made.tensors, evil), "p")
    comment, _, code = text.partition("*/")
    assert "int evil" in comment and "int y" in comment and "int x" in comment
    assert "evil" not in code and "int y" not in code


def test_a_name_becomes_an_identifier():
    assert identifier("seed0-peer1") == "seed0_peer1"
    assert identifier("3d printer") == "_3d_printer"


def test_a_missing_compiler_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(BadInput, match="install gcc or clang"):
        compile_library(tmp_path / "p.c", tmp_path / "p.so")
