"""Types of the keyword arguments of dpd.api's functions; written by docs/keywords.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

PathText = str | PathLike[str]
Nested = Mapping[str, Any]
"""Settings of a group of flags with a prefix."""
Listed = str | int | Sequence[str | int | Sequence[int]]
"""Names or numbers, as a text between commas or as a list."""


class TrainKeywords(TypedDict, total=False):
    """Keyword arguments of `dpd.train`."""

    env_kwargs: str | Nested
    randomize: str | None
    backend: Literal["auto", "native", "gymnasium", "async", "envpool", "warp"]
    device: str
    record_updates: bool
    kernels: Literal["auto", "torch"]
    peers: int
    seeds: int
    seed: int
    total_steps: int
    evals: int | None
    eval_episodes: int | None
    final_episodes: int | None
    threads: int | None
    workers: int
    records: int
    checkpoint_every: float
    keep: int
    on_nan: Literal["stop", "rollback"]
    keep_checkpoints: bool
    init_from: Sequence[PathText] | PathText
    out: PathText | None
    resume: PathText | None
    algo: Listed | None
    method: str
    preset: Listed | None
    config: PathText | None
    history: Listed | None
    lr: float
    peer_lr: Sequence[float] | float
    n_envs: int
    n_steps: int
    stagger: bool
    minibatch_size: int
    gamma: float
    peer_gamma: Sequence[float] | float
    hidden: Sequence[int] | int
    activation: Literal["tanh", "relu", "elu"]
    norm_obs: bool
    lr_schedule: Literal["linear", "constant"]
    epochs: int
    lam: float
    clip: float
    value_coef: float
    value_clip: float | None
    entropy_coef: float
    max_grad_norm: float
    adam_eps: float
    target_kl: float | None
    peer_hidden: Sequence[str] | str
    log_std_init: float
    norm_adv: bool
    norm_reward: bool
    share_experience: bool
    share_min_ess: float
    share_value: Literal["own", "mean"]
    reuse_iterations: int
    critic_obs: str
    critic_warmup: int
    init_std: float | None
    capacity: int
    critic_lr: float | None
    learning_starts: int
    updates_per_step: float
    extra_policy_updates: int
    share_replay: bool
    act: Literal["own", "hybrid"]
    act_every: int
    share_critics: Literal["both", "targets", "policy"]
    n_step: int
    tau: float
    n_critics: int
    target_critics: int | None
    policy_delay: int
    target_noise: float
    target_noise_clip: float
    exploration: Literal["gaussian", "ou", "param"]
    noise_std: float
    peer_noise_std: Sequence[float] | float
    ou_theta: float
    alpha: float | None
    alpha_init: float
    target_entropy: float | None
    actor_obs: str | None
    actor_noise: str | None
    actor_delay: int
    wandb: bool
    wandb_project: str | None
    wandb_entity: str | None
    wandb_group: str | None
    wandb_mode: Literal["online", "offline"] | None
    distill: Nested
    peer0: Nested
    peer1: Nested
    peer2: Nested
    peer3: Nested
    peer4: Nested
    peer5: Nested
    peer6: Nested
    peer7: Nested


class DistillKeywords(TypedDict, total=False):
    """Keyword arguments of `dpd.distill`."""

    env_kwargs: str | Nested
    randomize: str | None
    backend: Literal["auto", "native", "gymnasium", "async", "envpool", "warp"]
    device: str
    record_updates: bool
    kernels: Literal["auto", "torch"]
    peers: int
    seeds: int
    seed: int
    total_steps: int
    evals: int | None
    eval_episodes: int | None
    final_episodes: int | None
    threads: int | None
    workers: int
    records: int
    checkpoint_every: float
    keep: int
    on_nan: Literal["stop", "rollback"]
    keep_checkpoints: bool
    init_from: Sequence[PathText] | PathText
    out: PathText | None
    resume: PathText | None
    algo: Listed | None
    method: str
    preset: Listed | None
    config: PathText | None
    history: Listed | None
    student_sizes: Listed | None
    lr: float
    peer_lr: Sequence[float] | float
    n_envs: int
    n_steps: int
    stagger: bool
    minibatch_size: int
    gamma: float
    peer_gamma: Sequence[float] | float
    hidden: Sequence[int] | int
    activation: Literal["tanh", "relu", "elu"]
    norm_obs: bool
    lr_schedule: Literal["linear", "constant"]
    epochs: int
    lam: float
    clip: float
    value_coef: float
    value_clip: float | None
    entropy_coef: float
    max_grad_norm: float
    adam_eps: float
    target_kl: float | None
    peer_hidden: Sequence[str] | str
    log_std_init: float
    norm_adv: bool
    norm_reward: bool
    share_experience: bool
    share_min_ess: float
    share_value: Literal["own", "mean"]
    reuse_iterations: int
    critic_obs: str
    critic_warmup: int
    init_std: float | None
    capacity: int
    critic_lr: float | None
    learning_starts: int
    updates_per_step: float
    extra_policy_updates: int
    share_replay: bool
    act: Literal["own", "hybrid"]
    act_every: int
    share_critics: Literal["both", "targets", "policy"]
    n_step: int
    tau: float
    n_critics: int
    target_critics: int | None
    policy_delay: int
    target_noise: float
    target_noise_clip: float
    exploration: Literal["gaussian", "ou", "param"]
    noise_std: float
    peer_noise_std: Sequence[float] | float
    ou_theta: float
    alpha: float | None
    alpha_init: float
    target_entropy: float | None
    sizes: Sequence[str] | str
    encoder: Literal["mlp", "gru", "lstm", "tcn"]
    encoder_size: int | None
    gradient_length: int
    teacher: Sequence[PathText] | PathText
    teacher_by: str | None
    teacher_vecnormalize: Sequence[PathText] | PathText
    teacher_activation: Literal["tanh", "relu", "elu"] | None
    student_obs: str | None
    student_noise: str | None
    student_delay: int
    teacher_obs: str | None
    wandb: bool
    wandb_project: str | None
    wandb_entity: str | None
    wandb_group: str | None
    wandb_mode: Literal["online", "offline"] | None
    distill: Nested
    peer0: Nested
    peer1: Nested
    peer2: Nested
    peer3: Nested
    peer4: Nested
    peer5: Nested
    peer6: Nested
    peer7: Nested


class EvaluateKeywords(TypedDict, total=False):
    """Keyword arguments of `dpd.evaluate`."""

    episodes: int
    seed: int
    video: PathText | None
    hybrid: bool
    env: str | None
    env_kwargs: str | Nested
    vecnormalize: PathText | None
    activation: Literal["tanh", "relu", "elu"] | None


class CompareKeywords(TypedDict, total=False):
    """Keyword arguments of `dpd.compare`."""

    episodes: int
    seed: int
    threads: int | None
    out: PathText


class CooperateKeywords(TypedDict, total=False):
    """Keyword arguments of `dpd.cooperate`."""

    out: PathText
    total_steps: int
    rounds: int
    probes: int
    probe_envs: int
    probe_steps: int
    holdout: float
    horizon: int
    gamma: float
    margin: float
    control: Literal["none", "unfocused"]
    counterfactuals: bool
    proxy_steps: int
    proxy_lr: float
    cf_alpha: float
    cf_penalty: float
    cf_lr: float
    cf_steps: int
    cf_box: float
    cf_distinct: float
    steps: int
    batch: int
    lr: float
    anchor: float
    trial_episodes: int
    episodes: int
    seed: int
    threads: int | None
    resume: PathText | None
    env: str | None
    env_kwargs: str | Nested
    vecnormalize: PathText | None
    activation: Literal["tanh", "relu", "elu"] | None


class StudyKeywords(TypedDict, total=False):
    """Keyword arguments of `dpd.study`."""

    algo: str
    arms: Sequence[str] | str
    own: Sequence[str] | str
    subject: str
    seeds: int
    seed: int
    total_steps: int
    episodes: int
    shares: int
    jobs: int | None
    threads: int | None
    out: PathText
    plan: float | None
    engine: Literal["local", "ray"]
    address: str | None
    task_cpus: int | None
    task_gpus: float | None
    retries: int | None


class FidelityKeywords(TypedDict, total=False):
    """Keyword arguments of `dpd.fidelity`."""

    floor: PathText | None
    train_states: PathText | None
    episodes: int
    states: int
    seed: int
    threads: int | None
    out: PathText
    env: str | None
    env_kwargs: str | Nested
    vecnormalize: PathText | None
    activation: Literal["tanh", "relu", "elu"] | None


class SweepKeywords(TypedDict, total=False):
    """Keyword arguments of `dpd.sweep`."""

    sizes: Sequence[int] | int
    steps: int
    lr: float
    sgd_lr: float
    seeds: int
    seed: int
    episodes: int
    states: int
    quick: bool
    threads: int | None
    out: PathText
    env: str | None
    env_kwargs: str | Nested
    vecnormalize: PathText | None
    activation: Literal["tanh", "relu", "elu"] | None


class TuneKeywords(TypedDict, total=False):
    """Keyword arguments of `dpd.tune`."""

    algo: str | None
    trials: int
    seeds: int
    seed: int
    study_seeds: Sequence[int] | None
    total_steps: int
    evals: int
    eval_episodes: int
    pruner: Literal["asha", "hyperband", "none"]
    reduction: int
    search_seed: int
    jobs: int | None
    out: PathText
    engine: Literal["local", "ray"]
    address: str | None
    task_cpus: int | None
    task_gpus: float | None
    retries: int | None


class ExportKeywords(TypedDict, total=False):
    """Keyword arguments of `dpd.export`."""

    out: PathText | None
    hybrid: bool
    hybrid_seed: int | None
    env: str | None
    env_kwargs: str | Nested
    vecnormalize: PathText | None
    activation: Literal["tanh", "relu", "elu"] | None


class PushKeywords(TypedDict, total=False):
    """Keyword arguments of `dpd.push`."""

    private: bool
    episodes: int
    seed: int
    preview: PathText | None


class WatchKeywords(TypedDict, total=False):
    """Keyword arguments of `dpd.watch`."""

    every: float
    once: bool


class GroupsKeywords(TypedDict, total=False):
    """Keyword arguments of `dpd.groups`."""

    env_kwargs: str | Nested
    randomize: str | None


class ReportKeywords(TypedDict, total=False):
    """Keyword arguments of `dpd.report`."""

    out: PathText | None
    videos: int
    video_seconds: float
