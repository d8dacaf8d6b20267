"""A hybrid policy as an ONNX model: proposals, critics and the choice between them in one graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from dpd.policies.hybrid import HybridPolicy, PeerNetwork
from dpd.policies.onnx_graph import packed

if TYPE_CHECKING:
    import onnx


ZERO, ONE = np.zeros((), np.float64), np.ones((), np.float64)


class GraphWriter:
    """Nodes of an ONNX graph in float64; a node's inputs are names or constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._known: dict[torch.nn.Linear, tuple[str, str]] = {}

    def add(self, op: str, *inputs: str | np.ndarray, **attributes: int) -> str:
        """Append an operation; return the name of its result."""
        from onnx import helper

        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        result = f"{op.lower()}_{len(self.nodes)}"
        node = helper.make_node(op, names, [result])
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self.nodes.append(node)
        return result

    def constant(self, value: np.ndarray) -> str:
        """Add a constant; return its name."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _parameters(self, linear: torch.nn.Linear) -> tuple[str, str]:
        """Return the names of a layer's weight and bias, which critics use for every proposal."""
        if linear not in self._known:
            weight, bias = (x.detach().cpu().numpy() for x in (linear.weight.T, linear.bias))
            self._known[linear] = self.constant(np.ascontiguousarray(weight)), self.constant(bias)
        return self._known[linear]

    def cast(self, x: str, is_wide: bool) -> str:
        """Cast to float64, or to float32."""
        from onnx import TensorProto

        return self.add("Cast", x, to=TensorProto.DOUBLE if is_wide else TensorProto.FLOAT)

    def clip(self, x: str, low: np.ndarray, high: np.ndarray) -> str:
        """Clip to bounds of any shape."""
        return self.add("Min", self.add("Max", x, low), high)

    def elu(self, x: str) -> str:
        """Apply ELU, which ONNX Runtime has in float32 only."""
        negative = self.add("Sub", self.add("Exp", self.add("Min", x, ZERO)), ONE)
        return self.add("Add", self.add("Max", x, ZERO), negative)

    def mlp(self, x: str, net: torch.nn.Module) -> str:
        """Run a chain of linear layers and activations."""
        for part in net.children():
            if isinstance(part, torch.nn.Linear):
                x = self.add("Gemm", x, *self._parameters(part))
            elif isinstance(part, torch.nn.ELU):
                x = self.elu(x)
            else:
                x = self.add("Tanh" if isinstance(part, torch.nn.Tanh) else "Relu", x)
        return x


def hybrid_onnx(policy: HybridPolicy, facts: Mapping[str, str]) -> onnx.ModelProto:
    """Return a model `obs` [batch, O] -> `act` [batch, A], flattened, with `facts` as metadata.

    Inputs and outputs are float32, and everything between is float64, as in `HybridPolicy`.
    """
    graph, network = GraphWriter(), policy.network
    peers = [peer for peer in network.peers if isinstance(peer, PeerNetwork)]
    obs = graph.cast("obs", is_wide=True)
    inputs = [_normalised(graph, peer, obs) for peer in peers]
    acts = [_proposal(graph, peer, x) for peer, x in zip(peers, inputs, strict=True)]
    values = [_value(graph, [(peers[k], inputs[k]) for k in network.judges], act) for act in acts]
    best, most = acts[0], values[0]
    for act, value in zip(acts[1:], values[1:], strict=True):
        is_ahead = graph.add("Greater", value, most)  # the first of several equal ones acts
        best = graph.add("Where", is_ahead, act, best)
        most = graph.add("Where", is_ahead, value, most)
    low, high, half = (
        x.cpu().numpy() for x in (network.act_low, network.act_high, network.act_half)
    )
    scaled = graph.add("Add", graph.add("Mul", graph.add("Add", best, ONE), half), low)
    graph.cast(graph.clip(scaled, low, high), is_wide=False)
    return packed(graph.nodes, graph.constants, policy, facts)


def _normalised(graph: GraphWriter, peer: PeerNetwork, obs: str) -> str:
    if not peer.norm_obs:
        return obs
    mean, scale = peer.obs_mean.cpu().numpy(), peer.obs_scale.cpu().numpy()
    clip = np.asarray(peer.clip_obs, np.float64)
    return graph.clip(graph.add("Mul", graph.add("Sub", obs, mean), scale), -clip, clip)


def _proposal(graph: GraphWriter, peer: PeerNetwork, x: str) -> str:
    mean = graph.mlp(x, peer.actor)
    if peer.is_bounded:
        return graph.add("Tanh", mean)
    return graph.clip(mean, -ONE, ONE)


def _value(graph: GraphWriter, judges: list[tuple[PeerNetwork, str]], act: str) -> str:
    """Sum each judge's least critic of an action [B, A] -> [B, 1]."""
    total = ""
    for peer, x in judges:
        obs_act = graph.add("Concat", x, act, axis=1)
        values = [graph.mlp(obs_act, critic) for critic in peer.critics]
        least = graph.add("Min", *values)
        total = graph.add("Add", total, least) if total else least
    return total
