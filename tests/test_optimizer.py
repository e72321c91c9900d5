"""Muon turns the generator's matrices, AdamW moves the rest, and both go on from a saved state."""

import copy

import pytest
import torch
from torch import nn

from llm_modules.baselines import GeneratorAlone
from llm_modules.optimizer import MuonWithAdamW, build_optimizer, orthogonal
from llm_modules.settings import TrainingSettings
from tests.conftest import VOCAB, random_ids, tiny_generator_config, tiny_pair

ADAM = {"betas": (0.9, 0.98), "eps": 1e-8}


def settings(**changes):
    fields = {"learning_rate_bridge": 3e-3, "learning_rate_generator": 1e-3, "weight_decay": 0.1}
    return TrainingSettings(**(fields | changes))


def built(model, **changes):
    decayed = [name for name, parameter in model.named_parameters() if parameter.ndim == 2]
    return build_optimizer(model, settings(**changes), decayed=decayed, lr=7.0, **ADAM)


def update(model, optimizer, seed):
    """One update on random tokens."""
    ids = random_ids(2, 9, seed=seed)
    loss = model(ids, labels=ids, prompt_mask=torch.arange(9).expand(2, 9) < 4).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("shape", [(8, 8), (6, 30), (3, 1, 40), (16, 64)])
def test_orthogonal_has_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1)).mul(1e-3)
    values = torch.linalg.svdvals(orthogonal(matrices))
    # five iterations lift a singular value of 0.004 of the norm to 0.5 and leave a smaller one below
    shares = torch.linalg.svdvals(matrices) / torch.linalg.matrix_norm(matrices)[..., None]
    assert values.max() < 1.5
    assert (values[shares > 0.01] > 0.5).all() and (shares > 0.01).float().mean() > 0.8


def test_orthogonal_keeps_directions():
    left, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))
    right, _ = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(2)))
    matrix = left @ torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])) @ right[:5]
    turned = left.T @ orthogonal(matrix[None])[0] @ right.T
    values = turned.diagonal()
    assert ((values > 0.5) & (values < 1.5)).all()
    torch.testing.assert_close(turned[:, :5], torch.diag(values), atol=1e-4, rtol=0)


def test_orthogonal_of_zero_is_zero():
    assert not orthogonal(torch.zeros(2, 3, 4)).any()


@pytest.mark.parametrize("kind", ["pair", "generator alone"])
def test_muon_gets_the_matrices_of_the_generator_and_no_table(kind):
    if kind == "pair":
        model = tiny_pair()
    else:
        model = GeneratorAlone.from_config(
            tiny_generator_config(), vocab_size=VOCAB, generation_config=tiny_pair().generation_config
        )
    optimizer = built(model, optimizer="muon", muon_learning_rate=0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    turned = {names[id(p)] for group in optimizer.param_groups if group["muon"] for p in group["params"]}
    prefix = "generator." if kind == "pair" else "model.transformer.h."
    matrices = {
        name
        for name, parameter in model.named_parameters()
        if name.startswith(prefix) and parameter.ndim == 2 and ".wpe." not in name and ".wte." not in name
    } - {"generator.wpe.weight"}
    assert turned == matrices and len(matrices) == 12  # query, key, value, out, two of the MLP; in two layers
    assert {group["lr"] for group in optimizer.param_groups if group["muon"]} == {0.05}
    every = sorted(names[id(p)] for group in optimizer.param_groups for p in group["params"])
    assert every == sorted(names.values())


def test_no_muon_without_being_asked_for():
    optimizer = built(tiny_pair())
    assert type(optimizer) is torch.optim.AdamW
    assert not any(group["muon"] for group in optimizer.param_groups)


def test_muon_step_moves_each_matrix_by_its_rate():
    wide, tall = (
        nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(3))) for shape in [(4, 9), (9, 4)]
    )
    before = wide.detach().clone(), tall.detach().clone()
    group = {"params": [wide, tall], "lr": 0.1, "weight_decay": 0.5, "muon": True, "momentum": 0.95}
    optimizer = MuonWithAdamW([group], lr=1.0)
    wide.grad, tall.grad = torch.randn(4, 9), torch.randn(9, 4)
    gradients = wide.grad.clone(), tall.grad.clone()
    optimizer.step()
    # the first momentum is a share of the gradient, so the direction is the gradient's
    expected = before[0] * 0.95 - 0.1 * orthogonal(gradients[0][None])[0]
    torch.testing.assert_close(wide.detach(), expected, atol=1e-5, rtol=1e-5)
    expected = before[1] * 0.95 - 0.1 * 1.5 * orthogonal(gradients[1].T[None])[0].T  # sqrt(9 / 4)
    torch.testing.assert_close(tall.detach(), expected, atol=1e-5, rtol=1e-5)


def test_adamw_part_equals_torchs():
    ours, theirs = tiny_pair(), tiny_pair()
    mixed = built(ours, optimizer="muon")
    plain = built(theirs)
    for seed in range(4):
        ids = random_ids(2, 9, seed=seed)
        ours(ids, labels=ids, prompt_mask=torch.arange(9).expand(2, 9) < 4).loss.backward()
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.grad = None if mine.grad is None else mine.grad.clone()
        mixed.step(), plain.step()
        mixed.zero_grad(), plain.zero_grad()
    turned = {id(p) for group in mixed.param_groups if group["muon"] for p in group["params"]}
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other) == (id(mine) not in turned), name


@pytest.mark.parametrize("choice", ["muon", "adamw"])
def test_saved_optimizer_goes_on_identically(choice, tmp_path):
    model = tiny_pair()
    optimizer = built(model, optimizer=choice)
    for seed in range(3):
        update(model, optimizer, seed)
    twin = copy.deepcopy(model)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    other = built(twin, optimizer=choice)
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for seed in range(3, 6):
        update(model, optimizer, seed)
        update(twin, other, seed)
    for (name, mine), its in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, its), name


def test_closure_is_called_with_gradients():
    parameter = nn.Parameter(torch.ones(2, 3))
    group = {"params": [parameter], "lr": 0.1, "weight_decay": 0.0, "muon": True, "momentum": 0.95}
    optimizer = MuonWithAdamW([group], lr=1.0)

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 6.0
    assert (parameter < 1).all()
