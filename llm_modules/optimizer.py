"""AdamW with two learning rates, Muon for the generator's matrices, and one update of the weights."""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from llm_modules.settings import TrainingSettings

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Muon's quintic iteration
NEWTON_SCHULZ_STEPS = 5


class MuonWithAdamW(torch.optim.AdamW):
    """Muon for the groups marked `muon`, AdamW for the others, as one optimizer that a Trainer can save.

    Muon replaces a matrix's momentum by (nearly) the closest orthogonal matrix:
    `W <- W - lr * sqrt(max(1, rows / columns)) * orthogonal(momentum)`. `torch.optim.Muon` runs the iteration in bf16,
    which a CPU multiplies many times slower than fp32 (`docs/log.md`); this one stays in fp32 and iterates equal shapes
    together.
    """

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                self._turn_(group)
        super().step()
        return loss

    @torch.no_grad()
    def _turn_(self, group: dict) -> None:
        wide_by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
                state["step"] = torch.zeros(())  # AdamW looks for one in every state that it loads
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            update = parameter.grad.lerp(state["momentum"], group["momentum"])  # Nesterov's
            parameter.grad = None  # done: AdamW passes over it
            wide = update if parameter.shape[0] <= parameter.shape[1] else update.T
            wide_by_shape[tuple(wide.shape)].append((parameter, wide))
        for members in wide_by_shape.values():
            turned = orthogonal(torch.stack([wide for _, wide in members]))
            for (parameter, _), update in zip(members, turned, strict=True):
                rows, columns = parameter.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = update if rows <= columns else update.T
                parameter.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly orthogonal rows for each of `[n, rows, columns]` with rows <= columns: singular values near 1."""
    a, b, c = NEWTON_SCHULZ
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def build_optimizer(
    model: nn.Module, settings: TrainingSettings, *, decayed: Collection[str], **adam_kwargs
) -> torch.optim.Optimizer:
    """The optimizer of a run: a rate for the generator, one for the rest, no decay for norms and biases.

    Args:
        model: A pair, or a baseline whose language model is called `model`.
        settings: Rates, decay and choice of optimizer.
        decayed: Names of parameters with weight decay.
        **adam_kwargs: Betas and epsilon.
    """
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = defaultdict(list)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in model.named_parameters():
        is_generator = name.startswith(("generator.", "model."))
        # not tables, which are looked up row by row; not the bridge, whose D x D matrices cost more to turn than to use
        is_matrix = parameter.ndim == 2 and id(parameter) not in tables
        is_muon = settings.optimizer == "muon" and is_generator and is_matrix
        groups[is_generator, name in decayed, is_muon].append(parameter)
    adam_kwargs.pop("lr", None)
    parameter_groups = []
    for (is_generator, is_decayed, is_muon), parameters in groups.items():
        rate = settings.learning_rate_generator if is_generator else settings.learning_rate_bridge
        parameter_groups.append(
            {
                "params": parameters,
                "lr": settings.muon_learning_rate if is_muon else rate,
                "weight_decay": settings.weight_decay if is_decayed else 0.0,
                "muon": is_muon,
                "momentum": 0.95,
            }
        )
    kind = MuonWithAdamW if settings.optimizer == "muon" else torch.optim.AdamW
    return kind(parameter_groups, lr=settings.learning_rate_bridge, **adam_kwargs)


def optimizer_of(model: nn.Module, settings: TrainingSettings, **adam_kwargs: Any) -> torch.optim.Optimizer:
    """As training makes it: matrices decay, norms and biases do not."""
    decayed = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    return build_optimizer(model, settings, decayed=decayed, **adam_kwargs)


def update_(
    loss: Tensor,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    max_grad_norm: float = 1.0,
) -> float:
    """One update of the weights, as the Trainer makes it and alike for all that are compared; the loss."""
    loss.backward()
    clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()
