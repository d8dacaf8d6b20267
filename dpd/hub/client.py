"""The hub's client: its package, its address, and its errors as one line."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dpd.errors import BadInput

if TYPE_CHECKING:
    from huggingface_hub import HfApi

BEST_POLICY = "policy.safetensors"
"""The file in a repository that is its best policy."""


def hub_client() -> HfApi:
    """Return the hub's client, at the address of HF_ENDPOINT. Raises BadInput if it is missing."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise BadInput("the hub needs one more package: pip install 'dpd[hub]'")
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


def require_token() -> None:
    """Raise BadInput unless there is a token, without which nothing can be published."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise BadInput(
            "there is no token of the Hugging Face hub; run hf auth login, or set HF_TOKEN to one "
            "that may write (huggingface.co/settings/tokens)"
        )


@contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn the hub's errors into BadInput with one line."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise BadInput(f"{repo} asks for consent first: open huggingface.co/{repo}") from error
    except errors.RepositoryNotFoundError as error:
        raise BadInput(
            f"there is no repository {repo} on the hub, or it is private; check the name, or run "
            "hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise BadInput(f"{repo} has no revision {revision}; leave --revision out") from error
    except errors.OfflineModeIsEnabled as error:
        raise BadInput("HF_HUB_OFFLINE is set; unset it to reach the hub") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise BadInput(
                f"the hub refuses access to {repo} (status {status}); use a token that may do this"
            ) from error
        raise OSError(f"the hub answered with status {status}: {error}") from error
    except (errors.HTTPError, errors.LocalEntryNotFoundError) as error:  # no connection
        raise OSError(f"cannot reach the hub: {error}") from error
