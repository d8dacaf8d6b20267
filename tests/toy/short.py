"""Settings of runs that take a moment, for the functions of dpd.api."""

from typing import Any

SHORT: dict[str, Any] = {
    "total_steps": 512,
    "n_envs": 2,
    "n_steps": 64,
    "minibatch_size": 64,
    "epochs": 2,
    "hidden": [8],
    "evals": 2,
    "eval_episodes": 1,
    "final_episodes": 2,
    "threads": 1,
}
"""Two iterations of two peers, with an evaluation after each."""
