"""ONNX files keep to what TensorRT reads, as far as a machine without a GPU can tell.

Operators, types and restrictions are those of onnx-tensorrt's docs/operators.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, checker, numpy_helper, shape_inference
from onnx.tools.update_model_dims import update_inputs_outputs_dims

from dpd.agents.config import View
from dpd.policies.hybrid_onnx import hybrid_onnx
from dpd.policies.onnx_graph import OPSET, onnx_model
from dpd.policies.policyfile import Policy
from tests.toy.hybrids import line_hybrid
from tests.toy.policies import EVERY, saved

OPERATORS = {  # of FP32 and FP16, without restrictions that concern a policy
    *("Abs", "Add", "ArgMax", "Cast", "Clip", "Concat", "Constant", "Div", "Elu", "Erf", "Exp"),
    *("Expand", "Flatten", "Gather", "Gemm", "Identity", "LeakyRelu", "MatMul", "Max", "Min"),
    *("Mul", "Neg", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape"),
    *("Selu", "Shape", "Sigmoid", "Slice", "Softmax", "Softplus", "Sqrt", "Squeeze", "Sub"),
    *("Sum", "Tanh", "Transpose", "Unsqueeze", "Where"),
}
NEWEST_OPSET = 17
"""Of TensorRT 8.5; later versions read it too."""


def graph_of(policy: Policy) -> onnx.ModelProto:
    return onnx_model(policy, {"algo": policy.meta.algo})


def with_view(policy: Policy) -> Policy:
    """Let a policy of 8 numbers see two of them over four frames instead: as many inputs."""
    view = View(obs_dim=8, act_dim=2, columns=(0, 1), groups=("qpos",), history=4)
    norms = {name: policy.tensors[name][:, :2] for name in ("obs_mean", "obs_scale")}
    return Policy(dict(policy.tensors) | norms, replace(policy.meta, view=view))


@pytest.mark.parametrize("algo", EVERY)
def test_operators_and_types_are_those_that_tensorrt_reads(algo: str, tmp_path: Path) -> None:
    policy = saved(tmp_path, algo, "Swimmer-v5")
    for one in (policy, with_view(policy)):
        model = graph_of(one)
        checker.check_model(model, full_check=True)
        assert {node.op_type for node in model.graph.node} <= OPERATORS
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
        assert OPSET <= NEWEST_OPSET
        # TensorRT casts 64-bit numbers down; a policy has none
        assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT}
        shapes = [numpy_helper.to_array(tensor).ndim for tensor in model.graph.initializer]
        assert max(shapes) == 2


@pytest.mark.parametrize("batch", [1, 64])
def test_a_batch_of_any_size_and_one_of_a_fixed_size_give_the_same_actions(
    batch: int, tmp_path: Path
) -> None:
    policy = saved(tmp_path, "sac", "Swimmer-v5")
    dynamic = graph_of(policy)
    (inputs,), (outputs,) = dynamic.graph.input, dynamic.graph.output
    for value in (inputs, outputs):  # only the batch is open, as --minShapes and so on need
        first, second = value.type.tensor_type.shape.dim
        assert first.dim_param == "batch" and second.dim_value in (8, 2)
    static = onnx.ModelProto()
    static.CopyFrom(dynamic)
    static = update_inputs_outputs_dims(static, {"obs": [batch, 8]}, {"act": [batch, 2]})
    inferred = shape_inference.infer_shapes(static, strict_mode=True, data_prop=True)
    sizes = [v.type.tensor_type.shape.dim[0].dim_value for v in inferred.graph.value_info]
    assert sizes and set(sizes) == {batch}  # TensorRT knows every shape before it runs
    obs = np.random.default_rng(0).standard_normal((batch, 8)).astype(np.float32)
    acts = [
        onnxruntime.InferenceSession(model.SerializeToString()).run(["act"], {"obs": obs})[0]
        for model in (dynamic, static)
    ]
    np.testing.assert_array_equal(acts[0], acts[1])
    np.testing.assert_allclose(acts[0], policy.act(obs), atol=1e-5)


def test_a_hybrid_is_not_for_tensorrt() -> None:
    """It computes in float64, which TensorRT casts down, and another peer may then act."""
    model = hybrid_onnx(line_hybrid(), {})
    types = {tensor.data_type for tensor in model.graph.initializer}
    assert TensorProto.DOUBLE in types
