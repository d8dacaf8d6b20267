"""A policy as an ONNX model, built node by node: one product per layer, readable in any viewer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dpd.agents.encoders import TAPS
from dpd.policies.memory_io import STATES
from dpd.policies.policyfile import Policy, refuse_memory

if TYPE_CHECKING:
    import onnx

OPSET = 17  # of ONNX Runtime 1.12, TensorRT 8.5 and later; nothing newer is needed
ONNX_GATES = {"gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}
"""Places of ONNX's gates (update, reset, hidden; input, output, forget, cell) among ours."""
ENCODER_PARTS = ("input.weight", "state.weight", "input.bias", "state.bias")
ONNX_ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu", "elu": "Elu"}


class GraphBuilder:
    """A chain of ONNX nodes: each takes the result of the one before it, and constants."""

    def __init__(self, source: str) -> None:
        self.last = source
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def then(self, op: str, **constants: np.ndarray | np.float32) -> None:
        """Append an operation on the last result and named constants."""
        from onnx import helper, numpy_helper

        for name, value in constants.items():
            self.constants.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        result = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.last, *constants], [result]))
        self.last = result

    def convolve(self, policy: Policy) -> None:
        """Append the convolutions of a policy over frames [batch, H, G] -> [batch, D]."""
        from onnx import helper, numpy_helper

        def node(op: str, *constants: str, **settings: Any) -> None:
            result = f"{op.lower()}_{len(self.nodes)}"
            self.nodes.append(helper.make_node(op, [self.last, *constants], [result], **settings))
            self.last = result

        node("Transpose", perm=[0, 2, 1])
        i = 0
        while (weight := policy.tensors.get(f"encoder.conv{i}.weight")) is not None:
            taps = weight.unflatten(0, (TAPS, -1)).permute(2, 1, 0).numpy()
            values = {f"kernel_{i}": np.ascontiguousarray(taps)}
            values[f"offset_{i}"] = policy.tensors[f"encoder.conv{i}.bias"][0].numpy()
            self.constants += [numpy_helper.from_array(x, name) for name, x in values.items()]
            node("Conv", *values, dilations=[2**i], pads=[(TAPS - 1) * 2**i, 0])
            node("Relu")
            i += 1
        self.constants.append(numpy_helper.from_array(np.array(-1), "last_frame"))
        node("Gather", "last_frame", axis=2)

    def remember(self, policy: Policy) -> None:
        """Append the recurrent layer of a policy, which reads and gives the memory."""
        from onnx import helper, numpy_helper

        encoder = policy.meta.encoder
        assert encoder is not None
        order = ONNX_GATES[encoder.kind]
        constants = {"axis": np.zeros(1, np.int64)}
        parts = [policy.tensors[f"encoder.{name}"].numpy() for name in ENCODER_PARTS]
        weight, recurrence, *biases = [
            np.concatenate([np.split(x, len(order), 1)[k] for k in order], 1).T for x in parts
        ]
        constants |= {"layer_weight": weight[None], "layer_recurrence": recurrence[None]}
        constants["layer_bias"] = np.concatenate(biases)[:, 0][None]
        self.constants += [numpy_helper.from_array(x, name) for name, x in constants.items()]
        states, (axis, *weights) = STATES[encoder.kind], constants
        given = ["one_step", *weights, "", *(f"{state}_in" for state in states)]
        out = ["", *(f"{state}_out" for state in states)]
        settings: dict[str, Any] = {"linear_before_reset": 1} if encoder.kind == "gru" else {}
        size = encoder.size
        self.nodes += [
            helper.make_node("Unsqueeze", [self.last, axis], ["one_step"]),
            helper.make_node(encoder.kind.upper(), given, out, hidden_size=size, **settings),
            helper.make_node("Squeeze", ["h_out", axis], ["features"]),
        ]
        self.last = "features"


def onnx_model(policy: Policy, facts: Mapping[str, str]) -> onnx.ModelProto:
    """Return a model `obs` [batch, O] -> `act` [batch, A], flattened, with `facts` as metadata.

    For a policy with a view, `obs` is the stack of frames that it sees [batch, H, G], oldest first.
    A recurrent policy has the inputs and outputs of `memory_io`. Raises ValueError for a policy
    with a memory of its teacher.
    """
    refuse_memory(policy, "such a file")
    chain = actor_chain(policy)
    return packed(chain.nodes, chain.constants, policy, facts)


def packed(
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[onnx.TensorProto],
    policy: Policy,
    facts: Mapping[str, str],
) -> onnx.ModelProto:
    """Return a model of nodes from `obs`, the last of which gives the policy's action."""
    from onnx import TensorProto, checker, helper

    meta, encoder = policy.meta, policy.meta.encoder

    def described(name: str, *sizes: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)

    shape: Sequence[int] = meta.input_shape
    act, states = "act", list[tuple[str, int]]()
    if meta.view is not None and encoder is not None and meta.memory_dim:
        shape, act = (meta.view.history, meta.view.frame_dim), "actions"
        states = [(state, encoder.size) for state in STATES[encoder.kind]]
    nodes[-1].output[0] = act
    before, after = (
        [described(f"{state}_{side}", 1, "batch", size) for state, size in states]
        for side in ("in", "out")
    )
    graph = helper.make_graph(
        nodes,
        "policy",
        [described("obs", "batch", *shape), *before],
        [described(act, "batch", meta.act_dim), *after],
        constants,
    )
    versions = [helper.make_opsetid("", OPSET)]
    ir = helper.find_min_ir_version_for(versions)
    model = helper.make_model(graph, opset_imports=versions, producer_name="dpd", ir_version=ir)
    helper.set_model_props(model, dict(facts))
    checker.check_model(model, full_check=True)
    return model


def actor_chain(policy: Policy) -> GraphBuilder:
    """Return the nodes from observations, or frames, to actions in the environment's bounds."""
    meta = policy.meta
    t = {name: x.numpy() for name, x in policy.tensors.items()}
    chain = GraphBuilder("obs")
    if meta.norm_obs:
        chain.then("Sub", obs_mean=t["obs_mean"])
        chain.then("Mul", obs_scale=t["obs_scale"])
        clip = np.float32(meta.clip_obs)
        chain.then("Clip", obs_least=-clip, obs_most=clip)
    if meta.encoder is not None and meta.encoder.kind == "tcn":
        chain.convolve(policy)
    elif meta.view is not None:
        chain.then("Flatten")
    if meta.memory_dim:
        chain.remember(policy)
    for i in range(len(meta.hidden) + 1):
        if i:
            chain.then(ONNX_ACTIVATIONS[meta.activation])
        weight, bias = t[f"actor.{i}.weight"], t[f"actor.{i}.bias"][0]
        chain.then("Gemm", **{f"weight_{i}": weight, f"bias_{i}": bias})
    if meta.squashed or meta.tanh_mean:
        chain.then("Tanh")
    else:
        chain.then("Clip", least=np.float32(-1), most=np.float32(1))
    chain.then("Add", one=np.float32(1))
    chain.then("Mul", act_half=0.5 * (t["act_high"] - t["act_low"]))
    chain.then("Add", act_offset=t["act_low"])
    chain.then("Max", act_low=t["act_low"])  # rounding may leave the bounds
    chain.then("Min", act_high=t["act_high"])
    return chain
