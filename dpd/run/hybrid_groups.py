"""The groups of a run as hybrid policies: last policies, with the critics of the checkpoint.

A policy file holds no critics. The checkpoint of the same step does, and a finished run keeps it,
because every evaluation writes one and the last evaluation is at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from dpd.agents.base import LearnerId, State
from dpd.agents.learners import Learners
from dpd.agents.offpolicy import OffPolicy
from dpd.agents.offpolicy_config import OffPolicyConfig
from dpd.config import TrainConfig
from dpd.errors import BadInput
from dpd.log.naming import learner_name
from dpd.policies.hybrid import HybridPolicy, make_hybrid
from dpd.policies.hybrid_file import is_hybrid, load_hybrid
from dpd.policies.policyfile import Policy
from dpd.run.checkpoint import file_of, read
from dpd.run.saved import RunReader, checkpoint_folder, has_actor, saved_learners
from dpd.run.sources import SavedLearner, read_run

CriticWeights = Mapping[str, Tensor]


class PeerGroup(NamedTuple):
    """The peers of one seed, and their hybrid."""

    seed: int
    name: str
    """Name of the hybrid."""
    names: list[str]
    """Names of the peers."""
    hybrid: HybridPolicy
    evaluations: list[float | None]
    """Return of each peer's last evaluation in training, if known."""

    @property
    def peers(self) -> list[Policy]:
        """The peers' policies."""
        return self.hybrid.peers


def read_groups(path: Path, read_settings: RunReader, seed: int | None = None) -> list[PeerGroup]:
    """Return the groups of a run directory, or of the one seed; or that of a hybrid's file.

    Raises BadInput if there is no hybrid policy to make, or the critics are gone.
    """
    if not path.is_dir():
        return [read_group_file(path)]
    run = read_run(path, path.name)
    config = read_settings(path)
    refuse_no_choice(path, config)
    if seed is not None and seed not in run.seeds:
        raise BadInput(f"{path} has no seed {seed}; its seeds are {', '.join(map(str, run.seeds))}")
    reader = CriticReader(path, config)
    return [
        read_group([m for m in run.members if m.seed == each], reader)
        for each in (run.seeds if seed is None else [seed])
    ]


def read_group_file(path: Path) -> PeerGroup:
    """Return the group in a file that `dpd export --hybrid` wrote."""
    if not path.exists():
        raise BadInput(f"{path} does not exist; give a run directory or a hybrid policy's file")
    if not is_hybrid(path):
        raise BadInput(
            f"{path} is not a hybrid policy; --hybrid takes run directories with two peers or "
            "more, and files that dpd export --hybrid wrote"
        )
    policy = load_hybrid(path)
    seed = policy.meta.provenance.get("seed")
    origins = [peer.meta.provenance for peer in policy.peers]
    known = [x.get("eval_return") for x in origins]
    return PeerGroup(
        seed=seed if isinstance(seed, int) else 0,
        name=path.stem,
        names=[f"{path.stem}-peer{k}" for k in range(len(policy.peers))],
        hybrid=policy,
        evaluations=[x if isinstance(x, int | float) else None for x in known],
    )


def refuse_no_choice(path: Path, config: TrainConfig) -> None:
    """Raise BadInput unless a run has several peers, and critics that compare their actions."""
    if config.run.peers < 2:
        raise BadInput(f"{path} has one peer, so there is none to choose; train --peers 2 or more")
    if config.has_views:
        raise BadInput(
            f"{path}: its policies see {config.views.obs or 'all'} by a view; --hybrid needs peers "
            "that see whole observations"
        )
    if any(isinstance(stack.algo, OffPolicyConfig) for stack in config.stacks):
        return
    raise BadInput(
        f"{path} has no critics of actions: {config.algo_name} learns values of states at most, "
        "and those of two peers differ mostly by an offset, which says nothing about their "
        "actions; --hybrid needs a peer of --algo td3, ddpg or sac"
    )


def read_group(members: Sequence[SavedLearner], reader: CriticReader) -> PeerGroup:
    """Return the group of a seed's last policies."""
    seed, first = members[0].seed, members[0].policy.meta.provenance
    shared = ("config_sha256", "dpd", "torch", "git", "method", "seed", "steps")
    origin = {name: first[name] for name in shared if name in first}
    hybrid = make_hybrid([m.policy for m in members], [reader.critics(m) for m in members], origin)
    return PeerGroup(
        seed=seed,
        name=learner_name(seed, "hybrid"),
        names=[m.file.stem for m in members],
        hybrid=hybrid,
        evaluations=[m.evaluation for m in members],
    )


class CriticReader:
    """The critics in a run's checkpoints, each of which is read once."""

    def __init__(self, run_dir: Path, config: TrainConfig) -> None:
        self.run_dir, self.config = run_dir, config
        self._stacks: dict[tuple[Path, int], Learners] = {}
        self._states: dict[Path, State] = {}

    def critics(self, member: SavedLearner) -> list[CriticWeights]:
        """Return a learner's critics; none for an algorithm that has no critics of actions.

        Raises BadInput if the checkpoint of the policy's step is gone, or holds another policy.
        """
        k = next(k for k, s in enumerate(self.config.stacks) if member.peer in s.peers)
        folder, seeds = checkpoint_folder(self.config.run, self.run_dir, member.seed)
        ids = [(seed, peer) for seed in seeds for peer in self.config.stacks[k].peers]
        steps = member.policy.meta.provenance.get("steps")
        file = file_of(folder, steps if isinstance(steps, int) else 0)
        if not file.is_file():
            raise BadInput(
                f"{self.run_dir} has no checkpoint of step {steps}, which held the critics of "
                f"{member.file.name}; resume the run, or use a file that dpd export --hybrid wrote"
            )
        agent = self._learners(file, k, ids, member.policy)
        n = ids.index((member.seed, member.peer))
        if not has_actor(agent, n, member.policy):
            raise BadInput(
                f"{member.file} is not the policy in the checkpoint of step {steps}, so its "
                "critics are unknown; restore the run's own file"
            )
        if not isinstance(agent, OffPolicy):
            return []
        c, views = agent.config.n_critics, agent.critics.views
        return [{name: view[n * c + i].detach() for name, view in views.items()} for i in range(c)]

    def _learners(self, file: Path, k: int, ids: Sequence[LearnerId], policy: Policy) -> Learners:
        if file not in self._states:
            self._states[file], _ = read(file)
        if (file, k) not in self._stacks:
            stack, state = self.config.stacks[k], self._states[file]
            self._stacks[file, k] = saved_learners(stack, k, ids, state, policy)
        return self._stacks[file, k]
