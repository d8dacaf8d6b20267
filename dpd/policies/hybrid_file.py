"""The file of a hybrid policy, which holds the whole group: save it, load it, check it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dpd.files import replacing
from dpd.policies.file_checks import check_layout, check_sizes, check_values
from dpd.policies.hybrid import HybridMeta, HybridPolicy, hybrid_defect, peer_shapes, prefixed
from dpd.policies.metadata import HYBRID_KEY, MAX_DEPTH, NotAPolicy, is_deeper, read_meta, to_json
from dpd.policies.policyfile import Policy, load

HYBRID_FORMAT = 1
MAX_PEERS = 64
MAX_CRITICS = 64  # of one peer


def save_hybrid(path: Path, policy: HybridPolicy) -> None:
    """Write a hybrid policy, under a temporary name first so that no reader sees half a file."""
    meta = policy.hybrid
    text = {
        "format": HYBRID_FORMAT,
        "peers": [json.loads(to_json(peer)) for peer in meta.peers],
        "critics": meta.critics,
        "provenance": meta.provenance,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {
        # Cloned: peers may share tensors, which the format refuses.
        name: x.detach().to("cpu", torch.float32, copy=True).contiguous()
        for name, x in prefixed(policy.parts).items()
    }
    try:
        with replacing(path) as draft:
            save_file(data, draft, metadata={HYBRID_KEY: json.dumps(text)})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """Read a policy file of one learner, or the hybrid of a group.

    Raises NotAPolicy with the reason if it is neither. The file may come from an untrusted source:
    nothing in it is executed, and sizes and shapes are checked before tensors are read.
    """
    path = Path(path)
    return load_hybrid(path) if is_hybrid(path) else load(path)


def is_hybrid(path: Path) -> bool:
    """Return True if a file is a hybrid policy by its header."""
    try:
        check_sizes(path)
        with safe_open(path, framework="pt") as file:
            return HYBRID_KEY in (file.metadata() or {})
    except (NotAPolicy, SafetensorError, OSError):
        return False  # `load` says why


def load_hybrid(path: Path) -> HybridPolicy:
    """Read a file that `save_hybrid` wrote. Raises NotAPolicy with the reason if it is invalid."""
    try:
        check_sizes(path)
        with safe_open(path, framework="pt") as file:
            meta = read_hybrid_meta(path, (file.metadata() or {}).get(HYBRID_KEY))
            expected = peer_shapes(meta)
            check_layout(path, file, prefixed(expected))
            # Clone: the file is memory-mapped, and truncating it would crash the process.
            parts = [
                {name: file.get_tensor(f"peer{k}.{name}").clone() for name in own}
                for k, own in enumerate(expected)
            ]
    except (SafetensorError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NotAPolicy(f"{path} is not a policy file: {reason}") from error
    for part in parts:
        check_values(path, part)
    if defect := hybrid_defect(meta, parts):
        raise NotAPolicy(f"{path} is no hybrid policy: {defect}")
    return HybridPolicy(parts, meta)


def read_hybrid_meta(path: Path, text: str | None) -> HybridMeta:
    """Parse a description. Raises NotAPolicy with the path and the reason if it is invalid."""
    try:
        values = json.loads(text or "")
        if not isinstance(values, dict) or is_deeper(values, MAX_DEPTH):
            raise ValueError("not a plain JSON object")
        if (version := values.get("format")) != HYBRID_FORMAT or type(version) is not int:
            raise NotAPolicy(
                f"{path} has hybrid format {version!r:.40}; this version reads {HYBRID_FORMAT}"
            )
        peers, critics, provenance = (values.get(k) for k in ("peers", "critics", "provenance"))
        if not isinstance(peers, list) or not 2 <= len(peers) <= MAX_PEERS:
            raise ValueError(f"peers must be a list of 2 to {MAX_PEERS}")
        if not isinstance(critics, list) or len(critics) != len(peers):
            raise ValueError("critics must be a list with one number per peer")
        if not all(type(n) is int and 0 <= n <= MAX_CRITICS for n in critics):
            raise ValueError(f"critics must be numbers from 0 to {MAX_CRITICS}")
        if not isinstance(provenance, dict):
            raise ValueError("provenance is no object")
    except NotAPolicy:
        raise
    except (ValueError, RecursionError) as error:
        raise NotAPolicy(f"{path} is no hybrid policy: bad description ({error})") from error
    described = tuple(read_meta(path, json.dumps(peer)) for peer in peers)
    return HybridMeta(peers=described, critics=tuple(critics), provenance=provenance)
