"""The passes as autograd functions, whose gradients have gradients too.

The first order is always that of the kernels. Only where a gradient of a gradient is asked for, PyTorch's own functions
compute the sequences again, and autograd differentiates them as often as needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradcore.torch.operators import compiled_sequences
from gradcore.torch.passes import Grads, Plan, backward, forward

__all__: list[str] = []  # for the package only


def sequences(plan: Plan, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return y and the parts of the final state, with gradients where an input has."""
    if torch.compiler.is_compiling():
        return compiled_sequences(plan, x, *tensors)
    if torch._C._are_functorch_transforms_active():
        found = _TransformedForward.apply(plan, x, *tensors)
    elif torch.is_grad_enabled() and (x.requires_grad or any([tensor.requires_grad for tensor in tensors])):
        found = _Forward.apply(plan, x, *tensors)
    else:
        found = forward(plan, x, *tensors, keep=False)
    return tuple(found[: plan.n_outputs])


def gradients(plan: Plan, needs: Sequence[bool], x: Tensor, *rest: Tensor | None) -> Grads:
    """Return what `backward` does, with gradients where they are asked for."""
    for dy in rest[-plan.n_outputs :]:
        if dy is not None and torch._C._functorch.is_legacy_batchedtensor(dy):  # is_grads_batched
            tensors, _, d = plan.parts(rest)
            with torch.enable_grad():
                given = [tensor.view_as(tensor) for tensor in (x, *tensors)]
                return _composite_gradients(plan, needs, given, d)
    if torch._C._are_functorch_transforms_active():
        return tuple(_TransformedBackward.apply(plan, needs, x, *rest))
    if torch.is_grad_enabled():
        return tuple(_Backward.apply(plan, needs, x, *rest))
    return backward(plan, needs, x, *rest)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    plan, *tensors = inputs
    kept = output[plan.n_outputs :]
    ctx.plan = plan
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *kept)  # all of it, so that nothing outlives the backward pass


def _first_order(ctx: Any, *d: Tensor | None) -> Grads:
    needs = tuple(ctx.needs_input_grad[1:])
    return None, *gradients(ctx.plan, needs, *ctx.saved_tensors, *d[: ctx.plan.n_outputs])


def _remember_gradients(ctx: Any, inputs: tuple[Any, ...], output: Grads) -> None:
    plan, needs, x, *rest = inputs
    tensors, kept, d = plan.parts(rest)
    ctx.plan, ctx.needs, ctx.n_kept = plan, needs, len(kept)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *tensors, *d)


def _second_order(ctx: Any, *cotangents: Tensor | None) -> Grads:
    plan, saved = ctx.plan, ctx.saved_tensors
    n, create_graph = len(saved) - plan.n_outputs, torch.is_grad_enabled()
    with torch.enable_grad():
        # aliases: one of the inputs may have been computed from another, and the partial derivatives are asked for
        own = [given if given is None else given.view_as(given) for given in saved]
        grads = _composite_gradients(plan, ctx.needs, own[:n], own[n:])
        needs = [given is not None and given.requires_grad for given in own]
        every = _grad(grads, own, needs, cotangents, create_graph=create_graph)
    return None, None, *every[:n], *[None] * ctx.n_kept, *every[n:]


def _composite_gradients(
    plan: Plan, needs: Sequence[bool], given: Sequence[Tensor], d: Sequence[Tensor | None]
) -> Grads:
    """Return what `backward` does, with a graph, by PyTorch's own functions."""
    return _grad(composite(plan, *given), given, needs, d, create_graph=True)


def _grad(
    outputs: Sequence[Tensor | None],
    inputs: Sequence[Tensor | None],
    needs: Sequence[bool],
    d: Sequence[Tensor | None],
    *,
    create_graph: bool,
) -> Grads:
    """Return the gradients of the outputs with respect to the inputs; None where not needed, or without a way there."""
    pairs = [(y, dy) for y, dy in zip(outputs, d, strict=True) if y is not None and y.requires_grad and dy is not None]
    wanted = [given for given, need in zip(inputs, needs, strict=True) if need]
    if not pairs or not wanted:
        return (None,) * len(inputs)
    ys, dys = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(ys, wanted, dys, create_graph=create_graph, allow_unused=True))
    return tuple(next(found) if need else None for need in needs)


def composite(plan: Plan, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return y and the parts of the final state by PyTorch's own functions."""
    state, masks, weights = plan.split(tensors)
    D, H = plan.num_directions, weights[0][1].shape[1]
    function: Callable[..., Any] = getattr(torch, plan.cell_name)
    sizes = () if plan.packing is None else (plan.packing[0],)
    B = int(sizes[0][0]) if sizes else x.shape[1]
    if not state:
        state = [x.new_zeros(len(weights), B, H) for _ in plan.cell.states]
    if not x.numel() and not x.shape[0]:  # no steps, which PyTorch refuses
        return x.new_zeros(0, B, D * H), *state
    finals = []
    for layer in range(plan.num_layers):
        own = slice(layer * D, (layer + 1) * D)
        if layer and masks:
            x = x * masks[layer - 1].view_as(x)
        hx = [part[own] for part in state]
        flat = [weight for each in weights[own] for weight in each if weight is not None]
        options = plan.has_bias, 1, 0.0, False, D == 2, *(() if sizes else (False,))
        x, *final = function(x, *sizes, hx if len(hx) > 1 else hx[0], flat, *options)
        finals.append(final)
    return x, *map(torch.cat, zip(*finals, strict=True))


class _Forward(torch.autograd.Function):
    """The forward pass. `forward` takes the context, since PyTorch takes 50 us to call one beside `setup_context`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = forward(*inputs)
        _remember(ctx, inputs, output)
        return output

    backward = staticmethod(_first_order)


class _Backward(torch.autograd.Function):
    """The backward pass, which can be differentiated."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Grads:
        output = backward(*inputs)
        _remember_gradients(ctx, inputs, output)
        return output

    backward = staticmethod(_second_order)


class _TransformedForward(torch.autograd.Function):
    """The forward pass inside the transforms of torch.func."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return forward(*inputs)

    setup_context = staticmethod(_remember)
    backward = staticmethod(_first_order)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], plan: Plan, *tensors: Tensor) -> tuple[Any, Any]:
        """Fold into the batch where the weights are the same for all, else take turns."""
        V, dims = info.batch_size, in_dims[1:]
        _, _, weights = plan.split(dims[1:])
        if plan.packing is not None or any(dim is not None for own in weights for dim in own):
            each = [_TransformedForward.apply(plan, *_item(tensors, dims, v)) for v in range(V)]
            return tuple(map(torch.stack, zip(*each, strict=True))), (0,) * len(each[0])
        T, B = _item(tensors, dims, 0)[0].shape[:2]
        x, *others = _batched(tensors, dims, V)
        x = x.movedim(0, 1).flatten(1, 2)
        state, masks, _ = plan.split(others)
        state = [part.movedim(0, 1).flatten(1, 2) for part in state]
        masks = [mask.unflatten(1, (T, B)).movedim(0, 1).flatten(0, 2) for mask in masks]
        shared = tensors[1 + plan.n_states + plan.n_masks :]
        y, *rest = _TransformedForward.apply(plan, x, *state, *masks, *shared)
        finals, kept = rest[: plan.n_outputs - 1], rest[plan.n_outputs - 1 :]
        outputs = [part.unflatten(1, (V, B)) for part in (y, *finals)]
        return (*outputs, *kept), (*[1] * len(outputs), *[None] * len(kept))


class _TransformedBackward(torch.autograd.Function):
    """The backward pass inside the transforms of torch.func."""

    @staticmethod
    def forward(*inputs: Any) -> Grads:
        return backward(*inputs)

    setup_context = staticmethod(_remember_gradients)
    backward = staticmethod(_second_order)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], plan: Plan, needs: Sequence[bool], *given: Any) -> tuple[Any, Any]:
        """Take turns: the gradients of the weights are those of each item by itself."""
        found = []
        for v in range(info.batch_size):
            x, *rest = _item(given, in_dims[2:], v)
            tensors, _, d = plan.parts(rest)
            kept = _TransformedForward.apply(plan, x, *tensors)[plan.n_outputs :]  # it may have been folded
            found.append(_TransformedBackward.apply(plan, needs, x, *tensors, *kept, *d))
        stacked = [None if grads[0] is None else torch.stack(grads) for grads in zip(*found, strict=True)]
        return tuple(stacked), tuple(None if grad is None else 0 for grad in stacked)


def _item(tensors: Sequence[Any], dims: Sequence[int | None], v: int) -> list[Any]:
    return [t if dim is None else t.select(dim, v) for t, dim in zip(tensors, dims, strict=True)]


def _batched(tensors: Sequence[Tensor], dims: Sequence[int | None], V: int) -> list[Tensor]:
    """Return the tensors with the mapped dimension first."""
    pairs = zip(tensors, dims, strict=True)
    return [t.expand(V, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in pairs]
