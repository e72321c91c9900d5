"""Every recipe that ships can be read, its model can be built, and its header says what it needs."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from llm_modules import CombinedConfig, CombinedModel
from llm_modules.baselines import GeneratorAlone
from llm_modules.cli import app
from llm_modules.data.templates import encode
from llm_modules.default_source import built_in_source
from llm_modules.errors import UserError
from llm_modules.generator import load_generator
from llm_modules.settings import load_settings
from llm_modules.shapes import choices_of, skeleton
from llm_modules.tasks import get_task
from llm_modules.training import TrainingData, fit
from tests.conftest import VOCAB, random_ids, tiny_generator_config, tiny_source_config, tiny_tokenizer

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
ON_DEFAULT = [path for path in RECIPES if load_settings(path).model.source == "default"]
OF_THE_PAPER = [path for path in RECIPES if path not in ON_DEFAULT]
name_of = lambda path: path.stem  # noqa: E731


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def small_model_of(settings):
    """A recipe's model on a tiny source; the paper's generator, which is large, shrinks as well."""
    large = settings.model.source != "default"
    if settings.model.source is None:
        return GeneratorAlone(AutoModelForCausalLM.from_config(tiny_generator_config(vocab_size=VOCAB)))
    choices = choices_of(settings.model)
    source = tiny_source_config(num_hidden_layers=max([0, *(choices["taps"] or [])]) + 2)
    torch.manual_seed(0)
    return CombinedModel.from_modules(source, tiny_generator_config() if large else settings.model.generator, **choices)


def test_there_are_recipes_for_tasks():
    assert {load_settings(path).data.task for path in RECIPES} >= {"arithmetic", "facts", "math-word-problems"}


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
    config = CombinedConfig(source=source, generator=generator, **choices_of(settings.model))
    assert config.get_text_config().max_position_embeddings >= settings.data.max_length
    assert config.source.max_position_embeddings >= settings.data.max_length


@pytest.mark.parametrize("path", OF_THE_PAPER, ids=name_of)
def test_recipe_of_the_paper_fits_its_models(path, offline):
    settings = load_settings(path)
    bones = skeleton(settings.model)
    longest = min(settings.data.max_length, settings.data.cut_to or settings.data.max_length)
    bones.model.check_room(longest // 2, longest - longest // 2)
    if bones.source is not None:
        assert bones.source.config.max_position_embeddings >= longest


@pytest.mark.parametrize("path", OF_THE_PAPER, ids=name_of)
def test_header_says_what_the_plan_says(path, offline, monkeypatch):
    monkeypatch.chdir(path.parent.parent)
    header = " ".join(line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# "))
    command = shlex.split(re.search(r"`(llm-modules plan [^`]+)`", header)[1])
    assert command[2] == f"recipes/{path.name}"
    result = CliRunner().invoke(app, command[1:])
    assert result.exit_code == 0, result.output
    (needs,) = [line.removeprefix("needs: ") for line in result.stdout.splitlines() if line.startswith("needs: ")]
    assert needs in header


def test_only_the_recipes_that_reproduce_the_papers_wiring_leak_and_they_say_so():
    leaking = {path.stem for path in RECIPES if load_settings(path).model.visibility == "bidirectional"}
    assert leaking == {"paper", "paper-clean"}
    for path in RECIPES:
        assert load_settings(path).training.allow_leak == (path.stem in leaking)
        assert ("leak" in path.read_text().lower()) or path.stem not in leaking


def test_recipes_of_the_paper_differ_only_where_they_say():
    def fields(name):
        return load_settings(RECIPES[0].parent / f"{name}.yaml").model_dump()

    def differences(name):
        return {
            f"{section}.{key}"
            for section, values in fields("paper").items()
            for key, value in values.items()
            if fields(name)[section][key] != value
        }

    assert differences("paper-causal") == {"model.visibility", "training.allow_leak", "training.output_dir"}
    assert differences("paper-clean") == {"model.generator", "training.output_dir"}
    assert {key for key in differences("paper-finetuned") if not key.startswith("model.")} == {
        "data.max_length",
        "data.cut_to",
        "training.allow_leak",
        "training.output_dir",
    }


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
@pytest.mark.filterwarnings("ignore:visibility='bidirectional'")
def test_model_of_a_recipe_is_built_and_answers(path):
    model = small_model_of(load_settings(path)).eval()
    ids = model.generate(random_ids(2, 6), max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert ids.shape == (2, 9)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
@pytest.mark.filterwarnings("ignore:visibility='bidirectional'")
def test_recipe_trains_for_a_step(path, tmp_path):
    """On a tiny source, and four examples."""
    settings = load_settings(path, [f"training.output_dir={tmp_path}"])
    if settings.data.train_file is not None:
        conversations = [[{"role": "user", "content": "a ?"}, {"role": "assistant", "content": "b"}]] * 8
    else:
        conversations = [problem.messages() for problem in get_task(settings.data.task).train(8, seed=0)]
    tokenizer = tiny_tokenizer()
    examples = [encode(conversation, tokenizer) for conversation in conversations]
    shorter = {"max_steps": 1, "batch_size": 2, "gradient_accumulation_steps": 1}
    training = type(settings.training)(
        **settings.training.model_dump(exclude_unset=True, exclude={"num_epochs"}) | shorter
    )
    data = TrainingData(examples[:4], examples[4:], settings.data.loss_on)
    trainer = fit(small_model_of(settings), data, training, tokenizer=tokenizer)
    assert trainer.state.global_step == 1
