"""The model card of a repository, made from a run: metadata that the hub reads, and text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpd import __version__
from dpd.envs.make import choose_backend
from dpd.log.naming import parse_policy_name
from dpd.policies.policyfile import Policy
from dpd.policies.views import describe_view
from dpd.report.report import Table, format_number, markdown_table
from dpd.report.stats import mean_interval
from dpd.run.episodes import EvalResult

TAGS = ("deep-reinforcement-learning", "reinforcement-learning", "dpd", "policy-distillation")
RETAINED = "return above random actions, as a share of the teacher's"


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Contents of a card."""

    repo: str
    policies: Mapping[str, Policy]
    """By name."""
    results: Mapping[str, EvalResult]
    """Fresh episodes of each."""
    best: str
    """The name of the policy that `dpd.pull` returns: the best by evaluations in training."""
    command: str | None = None
    """The command that made the run; None for a single policy."""
    pictures: Sequence[str] = ()
    """Names of files."""
    fidelity: Mapping[str, Any] | None = None
    """Contents of the run's fidelity.json."""

    @property
    def main(self) -> Policy:
        """The best policy."""
        return self.policies[self.best]


def card_text(content: Publication) -> str:
    """Return the card: YAML, which huggingface_hub writes, and Markdown."""
    blocks = [
        f"---\n{metadata(content)}\n---",
        f"# {content.repo.partition('/')[2]}",
        opening(content),
        *(f"![{Path(name).stem}]({name})" for name in content.pictures),
        "## Use it",
        usage(content),
        "## Returns",
        *returns_blocks(content),
        *view_blocks(content.main),
        *fidelity_blocks(content.fidelity),
        *training_blocks(content),
    ]
    return "\n\n".join(blocks) + "\n"


def metadata(content: Publication) -> str:
    """Return the YAML by which the hub sorts models of reinforcement learning."""
    from huggingface_hub import EvalResult as HubResult
    from huggingface_hub import ModelCardData

    meta, returns = content.main.meta, content.results[content.best].returns[0]
    result = HubResult(
        task_type="reinforcement-learning",
        task_name="reinforcement-learning",
        dataset_type=meta.env_id,
        dataset_name=meta.env_id,
        metric_type="mean_reward",
        metric_name="mean_reward",
        metric_value=f"{returns.mean():.2f} +/- {deviation(returns):.2f}",
        verified=False,
    )
    data = ModelCardData(
        library_name="dpd",
        pipeline_tag="reinforcement-learning",
        tags=list(dict.fromkeys([meta.env_id, *TAGS, meta.algo])),
        model_name=content.best,
        eval_results=[result],
    )
    return data.to_yaml()


def deviation(returns: np.ndarray) -> float:
    """Return the standard deviation over episodes; 0 for one."""
    return float(returns.std(ddof=1)) if len(returns) > 1 else 0.0


def opening(content: Publication) -> str:
    """Return the first paragraph."""
    meta, origin = content.main.meta, content.main.meta.provenance
    method = origin.get("method")
    by = f", method `{inline(method)}`" if method not in (None, "none") else ""
    n = len({parse_policy_name(name).learner for name in content.policies})
    learners = "one learner" if n == 1 else f"{n} learners"
    layers = " x ".join(map(str, meta.hidden)) or "none"
    return (
        f"Policies of {learners} for `{inline(meta.env_id)}`, trained with dpd "
        f"(`{inline(meta.algo)}`{by}; hidden layers {layers}). The files are safetensors: nothing "
        "in them is executed."
    )


def inline(text: object) -> str:
    """Return text that cannot leave a code span or start a new block of Markdown."""
    return " ".join(str(text).replace("`", "'").split())


def usage(content: Publication) -> str:
    """Return three lines of Python that play the best policy, below their import.

    EnvPool steps batches, so of its own tasks there is no single environment to play in.
    """
    meta, folder = content.main.meta, content.repo.partition("/")[2]
    get = f"dpd pull {content.repo}"
    if choose_backend(meta.env_id, env_kwargs=meta.env_kwargs) == "envpool":
        install = "pip install 'dpd[hub,envpool]'"
        return f"```sh\n{install}\n{get}\ndpd evaluate {folder}\n```"
    return (
        "```python\n"
        "import dpd, gymnasium\n\n"
        f'policy = dpd.pull("{content.repo}")\n'
        "env = gymnasium.make(policy.meta.env_id, **policy.meta.env_kwargs)\n"
        "print(dpd.play(policy, env, episodes=10).mean())\n"
        "```\n\n"
        f"All files: `{get}`, then `dpd evaluate {folder}`."
    )


def returns_blocks(content: Publication) -> list[str]:
    """Return the table of returns, and their mean over seeds."""
    rows = []
    for name, result in content.results.items():
        returns = result.returns[0]
        bold = "**" if name == content.best else ""
        interval = mean_interval(returns)
        rows.append(
            [
                f"{bold}{name}{bold}",
                f"{returns.mean():,.0f}",
                "-" if interval is None else f"{interval.low:,.0f}…{interval.high:,.0f}",
                f"{deviation(returns):,.0f}",
                f"{len(returns)}",
            ]
        )
    title = f"Deterministic evaluation on fresh episodes of {inline(content.main.meta.env_id)}"
    columns = ["policy", "return", "95 % interval", "± std of episodes", "episodes"]
    best = "The policy in bold had the best evaluation during training."
    return [markdown_table(Table(title, columns, rows)), " ".join([best, *over_seeds(content)])]


def over_seeds(content: Publication) -> list[str]:
    """Return a sentence on the mean over seeds, if there are several."""
    seeds: dict[Any, list[float]] = {}
    for name, result in content.results.items():
        if not parse_policy_name(name).is_best:
            seed = content.policies[name].meta.provenance.get("seed")
            seeds.setdefault(seed, []).append(float(result.returns.mean()))
    scores = [float(np.mean(each)) for each in seeds.values()]
    interval = mean_interval(scores) if len(scores) > 1 else None
    if interval is None:
        return ["Intervals are over episodes of one policy, not over seeds."]
    return [
        f"Over {len(scores)} seeds, the mean of the last policies is {np.mean(scores):,.0f}, with "
        f"a 95 % t interval of {interval.low:,.0f} to {interval.high:,.0f}."
    ]


def view_blocks(policy: Policy) -> list[str]:
    """Return what the policy sees, if it is not the whole observation."""
    if (view := policy.meta.view) is None:
        return []
    shown = f"{len(view.columns)} of {view.obs_dim} numbers of an observation"
    text = f"The policy sees {shown}: {inline(describe_view(view))}."
    if not view.is_memoryless:
        text += " It keeps a history: call `policy.reset()` where an episode begins."
    return ["## What it sees", text]


def fidelity_blocks(fidelity: Mapping[str, Any] | None) -> list[str]:
    """Return how closely students follow their teacher, if the run measured it."""
    if fidelity is None:
        return []
    rows = []
    for size in fidelity["sizes"]:
        values = [size.get(name) for name in ("parameters", "return", "retained", "agree")]
        rows.append([inline(size["name"]), *map(format_number, values)])
    columns = ["student", "parameters", "return", "retained", "agreement"]
    note = (
        f"*retained*: {RETAINED}; *agreement*: share of the teacher's states with every action "
        "within 0.1 of the teacher's."
    )
    return ["## Fidelity", markdown_table(Table("Students and their teacher", columns, rows)), note]


def training_blocks(content: Publication) -> list[str]:
    """Return how the policies were made."""
    origin = content.main.meta.provenance
    versions = f"dpd {origin.get('dpd', __version__)}, PyTorch {origin.get('torch', '?')}"
    facts = f"{inline(versions)}; {origin.get('steps') or 0:,} environment steps per seed."
    if content.command is None:
        return ["## Training", facts]
    block = f"```sh\n{content.command}\n```"
    return ["## Training", block, f"{facts} All settings: `config.json`."]


def read_fidelity(file: Path) -> dict[str, Any] | None:
    """Read a run's fidelity.json; None if there is none."""
    if not file.is_file():
        return None
    data: dict[str, Any] = json.loads(file.read_text())
    return data
