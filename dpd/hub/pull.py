"""`dpd pull` and `dpd.pull`: download policies, and check them before they are kept."""

from __future__ import annotations

import os
import shutil
import tempfile
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dpd.errors import BadInput
from dpd.hub.client import BEST_POLICY, hub_client, hub_errors
from dpd.hub.config import PullConfig, require_repo
from dpd.hub.outcome import PullOutcome
from dpd.policies.hybrid_file import load_policy
from dpd.policies.metadata import NotAPolicy
from dpd.policies.policyfile import Policy
from dpd.report.report import Report

if TYPE_CHECKING:
    from huggingface_hub import HfApi

POLICIES = ("*.safetensors", "*.zip")
"""Policy files of dpd, and of Stable-Baselines3."""
BESIDE = ("README.md", "*.json", "*.png", "*.md", "vec*norm*.pkl", "config.yml", "args.yml")
"""Files that describe policies, by name. A .pkl is one of statistics, which is read as data."""


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Return True if a file's own name, without its folders, matches one of the patterns."""
    return any(fnmatch(PurePosixPath(name).name, pattern) for pattern in patterns)


def files_of(client: HfApi, repo: str, revision: str | None) -> tuple[list[str], str | None]:
    """Return the names of a repository's files that dpd can use, and their commit."""
    info = client.model_info(repo, revision=revision)
    names = [sibling.rfilename for sibling in info.siblings or []]
    # A name with a parent folder would be written outside the target.
    safe = [n for n in names if not PurePosixPath(n).is_absolute() and ".." not in n.split("/")]
    return [name for name in safe if matches(name, (*POLICIES, *BESIDE))], info.sha


def pull_repo(config: PullConfig) -> PullOutcome:
    """Download a repository's policies into a new directory, and say how to use them."""
    client, target = hub_client(), config.target
    if target.exists():
        raise BadInput(f"{target} exists; give --out a new directory")
    if not target.absolute().parent.is_dir():
        raise BadInput(f"{target.parent} is not a directory; create it, or give another --out")
    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".pull-") as name:
        folder = Path(name) / "repository"
        folder.mkdir()
        with hub_errors(config.repo, config.revision):
            names, commit = files_of(client, config.repo, config.revision)
            if not any(matches(name, POLICIES) for name in names):
                raise BadInput(f"{config.repo} has no policies: no .safetensors file and no .zip")
            for file in names:
                client.hf_hub_download(config.repo, file, revision=commit, local_dir=folder)
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's own notes
        refused = remove_unfit(folder)
        zips = [target / file.relative_to(folder) for file in sorted(folder.rglob("*.zip"))]
        if not zips and not any(folder.rglob("*.safetensors")):
            raise BadInput(f"{config.repo} has no policies that dpd can read: {refused[0]}")
        os.replace(folder, target)
    notes = [f"left out {line}" for line in refused]
    lines = [*(f"note: {note}" for note in notes), f"pulled  {target}"]
    lines += [f"a zip of Stable-Baselines3; play it with: dpd evaluate {p} --env ENV" for p in zips]
    kept = sorted(f.relative_to(target).as_posix() for f in target.rglob("*") if f.is_file())
    data = {"repo": config.repo, "commit": commit, "files": kept, "notes": notes}
    report = Report(sections=[], data=data, notes=notes)
    return PullOutcome(report=report, path=target, lines=lines)


def remove_unfit(folder: Path) -> list[str]:
    """Remove the .safetensors files that are no policies; return why each is none."""
    refused = []
    for file in sorted(folder.rglob("*.safetensors")):
        try:
            load_policy(file)
        except NotAPolicy as error:
            refused.append(str(error).replace(f"{folder}{os.sep}", ""))
            file.unlink()
    return refused


def pull_policy(repo: str, file: str | None = None, revision: str | None = None) -> Policy:
    """Download one policy of a repository of the Hugging Face hub, and load it.

    `repo` is OWNER/NAME. None as `file`: the best policy, if `dpd push` made the repository, or the
    only one. The client keeps the file in its cache. Nothing in it is executed. Raises BadInput if
    there is no such repository or policy, and NotAPolicy if the file is none.
    """
    require_repo(repo)
    client = hub_client()
    with hub_errors(repo, revision):
        names, commit = files_of(client, repo, revision)
        policies = [name for name in names if name.endswith(".safetensors")]
        if file is None and BEST_POLICY in policies:
            file = BEST_POLICY
        if file is None and len(policies) == 1:
            (file,) = policies
        if file is None or file not in policies:
            listed = ", ".join(policies) or "none; dpd pull takes zips of Stable-Baselines3 too"
            raise BadInput(f"name one of the policy files of {repo}; it has {listed}")
        path = client.hf_hub_download(repo, file, revision=commit)
    return load_policy(path)
