"""Gradient checkpointing: forget a block's activations, compute them again on the way back."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def checkpoint(
    func: Callable[..., Any], inputs: Sequence[Any], params: Iterable[Tensor], flag: bool
) -> Any:
    """`func(*inputs)` without keeping what happens inside it, at the cost of a second forward.

    params: the parameters that `func` uses besides its arguments; they get gradients too.
    flag: False calls `func` plainly.
    """
    if not flag:
        return func(*inputs)
    args = tuple(inputs) + tuple(params)
    return CheckpointFunction.apply(func, len(inputs), *args)


def _autocast_state(device_type: str) -> dict[str, Any]:
    return {
        "enabled": torch.is_autocast_enabled(device_type),
        "dtype": torch.get_autocast_dtype(device_type),
        "cache_enabled": torch.is_autocast_cache_enabled(),
    }


def _wants_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad


class CheckpointFunction(torch.autograd.Function):
    """`apply(run_function, length, *inputs, *params)`; the first `length` arguments are inputs.

    Inputs that are no float tensors pass through; frozen parameters get no gradient. The function
    must not write to its inputs, since they are read again on the way back.
    """

    @staticmethod
    def forward(ctx: Any, run_function: Callable[..., Any], length: int, *args: Any) -> Any:
        ctx.run_function = run_function
        ctx.input_tensors = list(args[:length])
        ctx.input_params = list(args[length:])
        ctx.wants_gradient = [_wants_gradient(a) for a in args]
        ctx.gpu_autocast_kwargs = _autocast_state("cuda")
        ctx.cpu_autocast_kwargs = _autocast_state("cpu")
        with torch.no_grad():
            return ctx.run_function(*ctx.input_tensors)

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Any, ...]:
        wants = ctx.wants_gradient
        inputs = [
            x.detach().requires_grad_(wanted) if isinstance(x, Tensor) else x
            for x, wanted in zip(ctx.input_tensors, wants, strict=False)
        ]
        with (
            torch.enable_grad(),
            torch.autocast("cuda", **ctx.gpu_autocast_kwargs),
            torch.autocast("cpu", **ctx.cpu_autocast_kwargs),
        ):
            # Views, so that the function sees no leaves, which it could not reshape in place.
            shallow = [x.view_as(x) if isinstance(x, Tensor) else x for x in inputs]
            outputs = ctx.run_function(*shallow)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [
            (out, grad)
            for out, grad in zip(outputs, output_grads, strict=True)
            if grad is not None and out.requires_grad
        ]
        targets = inputs + ctx.input_params
        chosen = [t for t, wanted in zip(targets, wants, strict=True) if wanted]
        found = iter(
            torch.autograd.grad(
                [out for out, _ in pairs], chosen, [grad for _, grad in pairs], allow_unused=True
            )
        )
        grads = tuple(next(found) if wanted else None for wanted in wants)
        del ctx.input_tensors, ctx.input_params, outputs
        return (None, None, *grads)
