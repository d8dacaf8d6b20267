"""The code that computes a stack's updates, compiled kernels or torch, and its threads."""

from __future__ import annotations

from functools import cache

from dpd.agents.offpolicy_config import OffPolicyConfig
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.student_config import StudentConfig
from dpd.config import StackConfig, TrainConfig
from dpd.distill.in_loss_config import KickstartConfig
from dpd.envs.physics import n_cores

MANY_ELEMENTS = 65536
"""Elements of a layer's joint output, above which torch's threads pay off."""
MANY_ELEMENTS_WITH_REPLAY = 4 * MANY_ELEMENTS
"""The same of one learner's minibatch, for TD3 and SAC: with 256 samples and 256 units, torch loses
by a second thread. Kernels are twice as fast as torch on one."""
METHODS_WITHOUT_KERNELS = ("retrieval", "scaffold")
"""Methods whose losses have no compiled form."""


def learners_of(config: TrainConfig, stack: StackConfig) -> int:
    """Return how many learners of a stack one process trains, at most."""
    return len(config.run.seeds_of(0)) * len(stack.peers)


def joint_elements(config: TrainConfig, stack: StackConfig) -> int:
    """Return the elements of the widest layer's output for the minibatches of a process."""
    return learners_of(config, stack) * stack.algo.minibatch_size * max(stack.algo.hidden)


def learner_threads(config: TrainConfig) -> int:
    """Return how many threads torch can use in an update.

    For small minibatches, a second thread only adds waiting. Measured on two cores: ten 64-64
    learners are 8 % faster with one thread (bench/train.py; ten DDPG learners, by a third:
    bench/learners.py), twenty are 8 % faster with two.
    """
    elements = max(joint_elements(config, stack) for stack in config.stacks)
    return n_cores() if elements > MANY_ELEMENTS else 1


@cache
def why_no_numba() -> str | None:
    """Return why Numba cannot be used; None: it can."""
    try:
        import numba  # noqa: F401  (here: it takes half a second)
    except ModuleNotFoundError:
        return "numba is not installed: pip install numba"
    except ImportError as error:
        return f"numba cannot be imported: {str(error).partition(chr(10))[0]}"
    return None


def why_not_fused(config: TrainConfig, stack: StackConfig) -> str | None:
    """Return why torch computes a stack's updates; None: compiled kernels do."""
    run, algo = config.run, stack.algo
    if run.kernels == "torch":
        return "--kernels torch"
    if run.device != "cpu":
        return "kernels are for the CPU"
    if isinstance(algo, OffPolicyConfig):
        return _why_not_replayed(config, stack)
    if not isinstance(algo, PPOConfig | StudentConfig):
        return f"there are no kernels for {stack.name}"
    if algo.encoder_layers is not None:
        return f"there are no kernels for --encoder {algo.encoder_layers.kind}"
    if config.method in METHODS_WITHOUT_KERNELS:
        return f"there are no kernels for method {config.method}"
    few = learners_of(config, stack) < update_threads(config)
    if few and joint_elements(config, stack) > MANY_ELEMENTS:
        return "these minibatches are large enough for more threads than there are learners"
    return why_no_numba()


def _why_not_replayed(config: TrainConfig, stack: StackConfig) -> str | None:
    """Return why torch computes the updates of learners with critics of actions."""
    distill, algo = config.distill, stack.algo
    if isinstance(distill, KickstartConfig) or getattr(distill, "dose", None) == "loss":
        return f"there are no kernels for a loss of method {config.method} with {stack.name}"
    if config.method in METHODS_WITHOUT_KERNELS:
        return f"there are no kernels for method {config.method}"
    if isinstance(algo, OffPolicyConfig) and algo.extra_policy_updates > 0:
        return "there are no kernels for extra_policy_updates"
    unlike = algo.norm_obs or bool(stack.histories)
    if isinstance(algo, OffPolicyConfig) and algo.share_experience and unlike:
        return "there are no kernels for share_experience with norm_obs or a view"
    few = 2 * learners_of(config, stack) < update_threads(config)
    if few and algo.minibatch_size * max(algo.hidden) > MANY_ELEMENTS_WITH_REPLAY:
        return "these minibatches are large enough for more threads than there are learners"
    return why_no_numba()


def update_threads(config: TrainConfig) -> int:
    """Return how many threads the updates of one process may use."""
    return config.run.threads or max(1, n_cores() // config.run.workers)


def update_plan(config: TrainConfig) -> str:
    """Say, for the start-up table, what computes the updates and why."""
    plans = []
    for stack in config.stacks:
        reason = why_not_fused(config, stack)
        of = f"{stack.name}: " if config.stacks[1:] else ""
        plans.append(of + ("fused kernels" if reason is None else f"torch ({reason})"))
    return "; ".join(dict.fromkeys(plans))
