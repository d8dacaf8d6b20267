"""`dpd push`: put a run's policies into a folder with a card, and publish it."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from dpd.errors import BadInput
from dpd.files import replacing
from dpd.hub.card import Publication, card_text, read_fidelity
from dpd.hub.client import BEST_POLICY, hub_client, hub_errors, require_token
from dpd.hub.command import ParseRun, published, training_command
from dpd.hub.config import PushConfig
from dpd.hub.outcome import PushOutcome
from dpd.policies.policyfile import load
from dpd.report.figures import learning_curves
from dpd.report.report import Report
from dpd.run.episodes import evaluate_together
from dpd.run.saved import RunReader
from dpd.run.sources import Place, find_policies, is_zip, one_policy
from dpd.run.summary import FIDELITY, STUDENTS, summary, title

CURVES_PNG = "curves.png"
REPORTS = ("fidelity/fidelity.html", "fidelity/fidelity.md", "fidelity/fidelity.json")
HYBRIDS = "seed*-hybrid.safetensors"


def push_path(config: PushConfig, read_settings: RunReader, parse: ParseRun) -> PushOutcome:
    """Publish a run directory or a policy file, or write what would be published."""
    client = hub_client()
    if config.preview is None:
        require_token()
    elif config.preview.exists():
        raise BadInput(f"{config.preview} exists; give --preview a new directory")
    files = published_files(config.path)
    with tempfile.TemporaryDirectory(prefix="dpd-push-") as name:
        folder = Path(name) / "repository"
        rows = fill(folder, config, files, read_settings, parse)
        names = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
        data = {"repo": config.repo, "files": names, "policies": rows}
        report, card = Report(sections=[], data=data), (folder / "README.md").read_text("utf-8")
        if config.preview is not None:
            shutil.copytree(folder, config.preview)
            lines = [f"preview  {config.preview / 'README.md'}"]
            return PushOutcome(report=report, card=card, folder=config.preview, lines=lines)
        with hub_errors(config.repo):
            client.create_repo(config.repo, private=config.private or None, exist_ok=True)
            client.upload_folder(
                repo_id=config.repo,
                folder_path=folder,
                commit_message=f"Policies of {config.path.resolve().name}",
            )
    url = f"{client.endpoint}/{config.repo}"
    return PushOutcome(report=report, card=card, url=url, lines=[f"published  {url}"])


def published_files(path: Path) -> list[Path]:
    """Return the policy files of a path. Raises BadInput for a zip, or if there are none."""
    if is_zip(path):
        raise BadInput(
            f"{path} is a Stable-Baselines3 zip; make it a policy file first: dpd export {path} "
            "--env ENV --format dpd"
        )
    return find_policies(path)


def fill(
    folder: Path, config: PushConfig, files: list[Path], read_settings: RunReader, parse: ParseRun
) -> list[dict[str, Any]]:
    """Write the files of the repository into a new folder; return the policies' returns."""
    policies = {file.stem: load(file) for file in files}
    env_id = next(iter(policies.values())).meta.env_id
    results = evaluate_together(list(policies.values()), env_id, config.episodes, config.seed)
    best = one_policy(config.path)
    (folder / "policies").mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, folder / "policies" / file.name)
    shutil.copyfile(best, folder / BEST_POLICY)
    command = None
    if (config.path / "config.json").is_file():
        command = add_run(folder, config.path, read_settings, parse)
    content = Publication(
        repo=config.repo,
        policies=policies,
        results=dict(zip(policies, results, strict=True)),
        best=best.stem,
        command=command,
        pictures=[name for name in (CURVES_PNG, STUDENTS) if (folder / name).exists()],
        fidelity=read_fidelity(folder / FIDELITY),
    )
    with replacing(folder / "README.md") as draft:
        draft.write_text(card_text(content), encoding="utf-8")
    return [
        summary(name, Place(env_id, policy.meta.env_kwargs), policy, content.results[name])
        for name, policy in policies.items()
    ]


def add_run(folder: Path, run_dir: Path, read_settings: RunReader, parse: ParseRun) -> str:
    """Add the settings, pictures and reports of a run; return the command that made it."""
    config = published(read_settings(run_dir))
    (folder / "config.json").write_text(json.dumps(config.as_json(), indent=2) + "\n")
    if (run_dir / "metrics.csv").is_file():
        learning_curves(run_dir / "metrics.csv", folder / CURVES_PNG, title(config))
    kept = [run_dir / name for name in (STUDENTS, FIDELITY, *REPORTS)]
    for file in [*kept, *run_dir.glob(HYBRIDS)]:
        if file.is_file():
            target = folder / file.relative_to(run_dir)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
    return training_command(config, parse)
