"""A device without numbers, to show on any machine what would go wrong on a GPU.

On `meta`, whatever would wait for a GPU raises: nothing can be read back. `Elsewhere` also refuses
an operation between its tensors and the CPU's, of which torch's own check lets some pass.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
ADAM = torch.ops.aten._fused_adam_.tensor_lr  # which CUDA has, and meta has not
TRANSFERS = {torch.ops.aten.copy_, torch.ops.aten._to_copy}


class Elsewhere(TorchDispatchMode):
    """Refuse what mixes devices; a number of the CPU's counts as a number."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        devices = {x.device.type for x in tensors if x.dim() > 0}
        assert len(devices) < 2 or func.overloadpacket in TRANSFERS, f"{func} mixes {devices}"
        return None if func == ADAM else func(*args, **(kwargs or {}))
