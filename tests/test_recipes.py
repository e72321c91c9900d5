"""Every recipe that ships can be read, and its pair can be built."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from llm_modules import CombinedConfig, CombinedModel
from llm_modules.data.templates import encode
from llm_modules.default_source import built_in_source
from llm_modules.errors import UserError
from llm_modules.generator import load_generator
from llm_modules.settings import load_settings
from llm_modules.tasks import get_task
from llm_modules.training import TrainingData, fit
from tests.conftest import random_ids, tiny_source_config, tiny_tokenizer

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
ON_DEFAULT = [path for path in RECIPES if load_settings(path).model.source == "default"]
name_of = lambda path: path.stem  # noqa: E731


def choices_of(settings):
    return settings.model.model_dump(exclude={"source", "source_revision", "source_dtype", "generator"})


def test_there_is_a_recipe_for_each_built_in_task():
    assert {load_settings(path).data.task for path in RECIPES} >= {"arithmetic", "facts"}


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe_is_explained_and_trains_into_a_folder_of_its_own(path):
    assert path.read_text().startswith("# ")
    folders = [load_settings(other).training.output_dir for other in RECIPES]
    assert folders.count(load_settings(path).training.output_dir) == 1


@pytest.mark.parametrize("path", ON_DEFAULT, ids=name_of)
def test_recipe_fits_the_default_source(path, own_cache):
    try:
        folder = built_in_source("default")
    except UserError as error:
        pytest.skip(str(error))
    settings = load_settings(path)
    source = AutoConfig.from_pretrained(folder)
    generator, _ = load_generator(settings.model.generator)
    config = CombinedConfig(source=source, generator=generator, **choices_of(settings))
    assert config.get_text_config().max_position_embeddings >= settings.data.max_length
    assert config.source.max_position_embeddings >= settings.data.max_length


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_pair_of_a_recipe_is_built_and_answers(path):
    settings = load_settings(path)
    choices = choices_of(settings)
    layers = max([0, *(choices["taps"] or [])]) + 2
    source = tiny_source_config(num_hidden_layers=layers)
    torch.manual_seed(0)
    model = CombinedModel.from_modules(source, settings.model.generator, **choices).eval()
    assert model.generate(random_ids(2, 6), max_new_tokens=3, do_sample=False, eos_token_id=None).shape == (2, 9)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe_trains_for_a_step(path, tmp_path):
    """On a tiny source, and four examples."""
    settings = load_settings(path, [f"training.output_dir={tmp_path}"])
    if settings.data.task is None:
        conversations = [[{"role": "user", "content": "a ?"}, {"role": "assistant", "content": "b"}]] * 8
    else:
        conversations = [problem.messages() for problem in get_task(settings.data.task).train(8, seed=0)]
    tokenizer = tiny_tokenizer()
    examples = [encode(conversation, tokenizer) for conversation in conversations]
    choices = choices_of(settings)
    source = tiny_source_config(num_hidden_layers=max([0, *(choices["taps"] or [])]) + 2)
    torch.manual_seed(0)
    model = CombinedModel.from_modules(source, settings.model.generator, **choices)
    shorter = {"max_steps": 1, "batch_size": 2}
    training = type(settings.training)(
        **settings.training.model_dump(exclude_unset=True, exclude={"num_epochs"}) | shorter
    )
    trainer = fit(model, TrainingData(examples[:4], examples[4:]), training, tokenizer=tokenizer)
    assert trainer.state.global_step == 1
