"""FSDP2: weights, gradients and optimizer states of what trains, divided among the processes; files stay whole.

What is saved has the names, shapes and order of an undivided model, so that any number of processes can go on from it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from llm_modules.blocks import blocks_of
from llm_modules.processes import is_first, num_processes


def shard_(model: Any) -> None:
    """Divide a pair's (or a generator's) parameters among all processes, block by block of the generator.

    The source is no sub-module: it stays whole in every process, or is left out where training reads a store. Numbers
    without a dimension stay whole too, which FSDP2 asks for; `average_whole_` keeps them alike.
    """
    for tensor in model.state_dict().values():
        distributed.broadcast(tensor, src=0)  # random weights may differ in the last bit between kinds of processors
    scalars = {parameter for parameter in model.parameters() if not parameter.ndim}
    mesh = init_device_mesh(next(model.parameters()).device.type, (num_processes(),))
    for block in blocks_of(model.generator if hasattr(model, "generator") else model.model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=scalars)
    for scalar in scalars:
        scalar.register_post_accumulate_grad_hook(_average_)


def is_sharded(model: nn.Module) -> bool:
    """Whether this model's parameters are divided."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights, gathered; every process must ask, and the first gets them."""
    return {name: whole for name, tensor in model.state_dict().items() if (whole := _whole(tensor)) is not None}


@torch.no_grad()
def load_whole_(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every process its part of whole weights, which all of them read."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(_like(tensor, state[name]))


def keep_whole_(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer over divided parameters give and take whole states; every process must ask for them."""
    optimizer.register_state_dict_post_hook(_gather)
    optimizer.register_load_state_dict_pre_hook(_spread)


def _gather(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state with whole tensors, for the first process; empty for others."""
    found = {
        index: {name: _whole(value) if isinstance(value, Tensor) else value for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return state | {"state": found if is_first() else {}}


def _spread(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    found = {
        index: {
            name: _like(parameters[index], value) if isinstance(value, Tensor) and value.ndim else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return state | {"state": found}


def _whole(tensor: Tensor) -> Tensor | None:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu() if is_first() else None


def _like(tensor: Tensor, whole: Tensor) -> Tensor:
    """A whole tensor as this one is: divided, or not."""
    if not isinstance(tensor, DTensor):
        return whole
    moved = whole.to(tensor.device)
    return distribute_tensor(moved, tensor.device_mesh, tensor.placements, src_data_rank=None)  # each has it already


def _average_(parameter: Tensor) -> None:
    assert parameter.grad is not None  # noqa: S101 - the hook comes after it
    distributed.all_reduce(parameter.grad)  # a sum: gloo knows no mean
    parameter.grad /= num_processes()
