"""Stable-Baselines3 models to import: trained for a moment, saved by SB3 itself."""

import io
import json
import os
import shlex
import zipfile
from pathlib import Path

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from dpd.commands import ForeignConfig
from dpd.vecnormalize import conversion


def trained(folder, env_id="Pendulum-v1", normalise=False, steps=128, kind=PPO, **settings):
    """Train a model for a moment and save it -> its zip, the model, its VecNormalize."""
    envs = make_vec_env(env_id, n_envs=2, seed=0)
    norm = VecNormalize(envs, clip_obs=5.0, epsilon=1e-6) if normalise else None
    if kind is PPO:
        settings = {"n_steps": 64, "batch_size": 64} | settings
    model = kind("MlpPolicy", norm or envs, device="cpu", seed=0, **settings).learn(steps)
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


def convert(path):
    """Do in this process what the conversion's command does -> the .npz."""
    program = shlex.split(conversion(path))[2]
    exec(program, {})
    return path.with_suffix(".npz")


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
