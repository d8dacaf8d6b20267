"""Stable-Baselines3 models to import: trained for a moment or not, saved by SB3 itself."""

import io
import json
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from dpd.policies.config import ForeignConfig
from dpd.policies.metadata import NotAPolicy
from dpd.sb3.zip import load_zip

OFF_POLICY = (SAC, TD3, DDPG)
N_OBS = 500


def trained(folder, env_id="Pendulum-v1", normalise=False, steps=128, kind=PPO, **settings):
    """Train a model for a moment and save it -> its zip, the model, its VecNormalize.

    One with a replay learns nothing yet, and gets larger weights, so that it acts.
    """
    envs = make_vec_env(env_id, n_envs=2, seed=0)
    norm = VecNormalize(envs, clip_obs=5.0, epsilon=1e-6) if normalise else None
    if kind is PPO:
        settings = {"n_steps": 64, "batch_size": 64} | settings
    elif kind in OFF_POLICY:
        settings = {"buffer_size": 1000, "learning_starts": 1000} | settings
    model = kind("MlpPolicy", norm or envs, device="cpu", seed=0, **settings).learn(steps)
    if kind in OFF_POLICY:
        with torch.no_grad():
            for p in model.policy.parameters():
                p.mul_(1.8)
    path = Path(folder) / "model.zip"
    model.save(path)
    if norm is not None:
        norm.training = False
    return path, model, norm


def statistics(norm, path, **changes):
    """Write a VecNormalize's statistics as its conversion does."""
    rms = norm.obs_rms
    arrays = {"mean": rms.mean, "var": rms.var, "count": rms.count, "norm_obs": norm.norm_obs}
    arrays |= {"epsilon": norm.epsilon, "clip_obs": norm.clip_obs} | changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def foreign(env="Pendulum-v1", **settings):
    return ForeignConfig(env=env, **settings)


def rewritten(path, target, members=None, **data):
    """Copy a zip with other members, and other settings in its JSON."""
    members = members or {}
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as out:
        said = json.loads(source.read("data")) | data
        said = {k: v for k, v in said.items() if v is not ...}
        contents = {n: source.read(n) for n in source.namelist()}
        for name, content in (contents | {"data": json.dumps(said)} | members).items():
            if content is not None:
                out.writestr(name, content)
    return target


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, target):
        self.target = os.fspath(target)

    def __reduce__(self):
        return (open, (self.target, "w"))


def torch_file(index, data=bytes(64)):
    """Return a file of torch.save's form with any pickle in the place of its list of tensors."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("data.pkl", index), ("version", b"3\n"), ("data/0", data)):
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def refused(path, kind=NotAPolicy, limit=300, **settings):
    """Import what must be refused; return what was said, in a few seconds' work at most."""
    start = time.process_time()
    with pytest.raises(kind) as caught:
        load_zip(path, foreign(**settings))
    assert time.process_time() - start < 3
    said = str(caught.value)
    assert str(path) in said and len(said) < len(str(path)) + limit
    return said


def largest_gap(policy, model, norm=None, obs=None):
    """Return the largest difference to SB3's own predict, in halves of the action range."""
    if obs is None:
        rng = np.random.default_rng(0)
        obs = rng.normal(size=(N_OBS, policy.meta.obs_dim)).astype(np.float32)
        if norm is not None:
            obs = (norm.obs_rms.mean + obs * np.sqrt(norm.obs_rms.var) * 3).astype(np.float32)
    seen = obs if norm is None else norm.normalize_obs(obs)
    theirs = model.predict(seen, deterministic=True)[0]
    half = (model.action_space.high - model.action_space.low) / 2
    return (np.abs(policy.act(obs) - theirs) / half).max()


def weights_with(path, **changes):
    """Return a zip's policy.pth with other tensors."""
    with zipfile.ZipFile(path) as archive:
        weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    weights = {k: v for k, v in (weights | changes).items() if v is not None}
    file = io.BytesIO()
    torch.save(weights, file)
    return {"policy.pth": file.getvalue()}
