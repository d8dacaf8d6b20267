"""Runs that start from policies with a view: all learners see what these policies see."""

from __future__ import annotations

from dataclasses import replace

from dpd.agents.config import View
from dpd.config import TrainConfig
from dpd.distill.views import PREV_ACTION, ActorViewConfig
from dpd.errors import BadInput
from dpd.policies import policyfile


def with_initial_view(config: TrainConfig) -> TrainConfig:
    """Return the settings of `dpd train` with the view of the policies of --init-from.

    Flags for a view take precedence, and a resumed run has its view in its saved settings. Raises
    BadInput if the policies see different things.
    """
    run = config.run
    if config.command != "train" or run.resume is not None or config.has_views:
        return config
    views = [policyfile.load(file).meta.view for file in run.init_from]
    first = views[0] if views else None
    if any(view != first for view in views):
        raise BadInput(
            "the policies of --init-from see different things; give policies that see the same"
        )
    if first is None:
        return config
    return replace(config, views=settings_of(first), histories=(first.history,))


def settings_of(view: View) -> ActorViewConfig:
    """Return the settings that make a view."""
    words = list(view.groups or map(str, view.columns))
    if view.prev_action and PREV_ACTION not in words:
        words.append(PREV_ACTION)
    noise = zip(view.columns, view.noise, strict=False)
    return ActorViewConfig(
        actor_obs=",".join(words),
        actor_noise=",".join(f"{column}={std}" for column, std in noise if std) or None,
        actor_delay=view.delay,
    )
