"""The passes as operators of PyTorch, which torch.compile takes whole."""

# No postponed annotations: PyTorch reads those of operators.

from typing import Any

import torch
from torch import Tensor

from gradcore.layers.functional import trace_columns
from gradcore.torch.passes import DTYPES, Plan, backward, forward

__all__: list[str] = []  # for the package only


def compiled_sequences(plan: Plan, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return y and the parts of the final state, as one node of the graph that is compiled."""
    return tuple(_recurrent(x, list(tensors), *plan[:7])[: plan.n_outputs])


def _forward(
    x: torch.Tensor,
    tensors: list[torch.Tensor],
    cell: str,
    num_layers: int,
    num_directions: int,
    has_bias: bool,
    n_states: int,
    n_masks: int,
    key: int,
) -> list[torch.Tensor]:
    plan = Plan(cell, num_layers, num_directions, has_bias, n_states, n_masks, key)
    return list(forward(plan, x, *tensors))


def _fake_forward(x: Tensor, tensors: list[Tensor], *values: Any) -> list[Tensor]:
    plan = Plan(*values)
    (T, B, _), D = x.shape, plan.num_directions
    _, _, weights = plan.split(tensors)
    n, H = len(weights), int(weights[0][1].shape[1])
    columns = trace_columns(plan.cell, T * B, H, DTYPES[x.dtype])
    states, inputs = [(n, B, H)] * len(plan.cell.states), [(T * B, D * H)] * (plan.num_layers - 1)
    return [x.new_empty(shape) for shape in ((T, B, D * H), *states, (n, columns), *inputs)]


def _backward(
    x: torch.Tensor,
    tensors: list[torch.Tensor],
    kept: list[torch.Tensor],
    d: list[torch.Tensor | None],
    needs: list[bool],
    cell: str,
    num_layers: int,
    num_directions: int,
    has_bias: bool,
    n_states: int,
    n_masks: int,
    key: int,
) -> list[torch.Tensor]:
    plan = Plan(cell, num_layers, num_directions, has_bias, n_states, n_masks, key)
    return [grad for grad in backward(plan, needs, x, *tensors, *kept, *d) if grad is not None]


def _fake_backward(x: Tensor, tensors: list[Tensor], kept: Any, d: Any, needs: list[bool], *_: Any) -> list[Tensor]:
    return [x.new_empty(given.shape) for given, need in zip((x, *tensors), needs, strict=True) if need]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, tensors, *values = inputs
    ctx.plan, ctx.n_tensors = Plan(*values), len(tensors)
    ctx.save_for_backward(x, *tensors, *output[ctx.plan.n_outputs :])


def _gradients(ctx: Any, d: list[Tensor | None]) -> tuple[Any, ...]:
    x, *saved = ctx.saved_tensors
    tensors, kept = saved[: ctx.n_tensors], saved[ctx.n_tensors :]
    needs = [x.requires_grad, *(tensor.requires_grad for tensor in tensors)]
    found = iter(_recurrent_backward(x, tensors, kept, d[: ctx.plan.n_outputs], needs, *ctx.plan[:7]))
    dx, *others = (next(found) if need else None for need in needs)
    return dx, others, *[None] * 7


_recurrent: Any = torch.library.custom_op("gradcore::recurrent", _forward, mutates_args=())
_recurrent_backward: Any = torch.library.custom_op("gradcore::recurrent_backward", _backward, mutates_args=())
_recurrent.register_fake(_fake_forward)
_recurrent_backward.register_fake(_fake_backward)
_recurrent.register_autograd(_gradients, setup_context=_remember)
