"""A configuration is read in full, or refused with the nearest thing that would be right."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from llm_modules.errors import MissingFileError, UserError
from llm_modules.settings import Settings, known_keys, load_settings, settings_page

MINIMAL = "data: {task: arithmetic}\n"


@pytest.fixture
def config(tmp_path):
    def write(text=MINIMAL):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


def test_minimal_configuration_takes_every_default(config):
    settings = load_settings(config())
    assert settings == Settings(data={"task": "arithmetic"})
    assert settings.model.source == "default"
    assert settings.training.learning_rate_bridge == 1e-4


def test_settings_survive_yaml(config):
    settings = load_settings(config(), ["model.taps=[3, -1]", "training.resume=auto"])
    assert load_settings(config(yaml.safe_dump(settings.model_dump(mode="json", exclude_unset=True)))) == settings


def test_settings_cannot_be_changed_after_the_check(config):
    with pytest.raises(ValidationError, match="frozen"):
        load_settings(config()).data.seed = 3


def test_overrides_are_yaml(config):
    overrides = [
        "training.learning_rate_bridge=3e-4",
        "training.max_steps=7",
        "model.taps=[4, -1]",
        "model.generator.model_type=llama",
        "model.generator.rms_norm_eps=1e-6",
        "training.early_stopping_patience=null",
        "training.output_dir=runs/a=b",
        "data.task=facts",
    ]
    settings = load_settings(config(), overrides)
    assert settings.training.learning_rate_bridge == 3e-4
    assert settings.training.max_steps == 7
    assert settings.model.taps == [4, -1]
    assert settings.model.generator == {"model_type": "llama", "rms_norm_eps": 1e-6}
    assert settings.training.early_stopping_patience is None
    assert str(settings.training.output_dir) == "runs/a=b"
    assert settings.data.task == "facts"


def test_override_fills_a_section_that_is_empty_in_the_file(config):
    assert load_settings(config(MINIMAL + "training:\n"), ["training.seed=5"]).training.seed == 5


def test_a_task_from_a_file_takes_both_and_a_validation_file(config):
    overrides = ["data.task=math-word-problems", "data.train_file=a.csv", "data.validation_file=b.csv"]
    assert load_settings(config(), overrides).data.train_file == "a.csv"
    assert load_settings(config(), ["data.task=reasoning-gym:chain_sum"]).data.train_file is None


@pytest.mark.parametrize("override", ["seed", "seed=3", "training.=3", ".seed=3", "=3"])
def test_override_of_another_form_is_refused(config, override):
    with pytest.raises(UserError, match="is not section.key=value"):
        load_settings(config(), [override])


def test_override_below_a_value_is_refused(config):
    with pytest.raises(UserError, match="cannot set model.source.name: model.source is 'x', not a mapping"):
        load_settings(config(), ["model.source=x", "model.source.name=3"])


def test_override_of_broken_yaml_is_refused(config):
    with pytest.raises(UserError, match="the override 'model.taps=\\[1' is not valid YAML"):
        load_settings(config(), ["model.taps=[1"])


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("training.learning_rate_brige=1", "training.learning_rate_bridge"),
        ("trainig.max_steps=1", "training"),
        ("model.max_length=1", "data.max_length"),
        ("model.visibilty=prompt", "model.visibility"),
        ("training.epochs=1", "training.num_epochs"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_known_one(config, override, nearest):
    with pytest.raises(UserError, match=f"unknown key {override.partition('=')[0].split('.')[0]}") as caught:
        load_settings(config(), [override])
    assert str(caught.value).endswith(f"the nearest known key is {nearest}")


def test_several_problems_are_told_at_once(config):
    with pytest.raises(UserError) as caught:
        load_settings(config(), ["training.sed=1", "model.num_heads=0"])
    assert "training.seed" in str(caught.value)
    assert "model.num_heads: Input should be greater than or equal to 1 (given: 0)" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.visibility=block"], "visibility 'block' is planned for a later round; choose prompt"),
        (["model.visibility=all"], "model.visibility: Input should be 'prompt', 'causal' or 'bidirectional'"),
        (["model.generator={hidden_size: 4}"], "generator lacks model_type"),
        (["model.taps=[]"], "model.taps"),
        (["model.placement=inside"], "model.placement: Input should be 'front' or 'interleaved'"),
        (["model.interleave_every=0"], "model.interleave_every: .* greater than or equal to 1"),
        (["model.num_bridge_layers=-1"], "model.num_bridge_layers: .* greater than or equal to 0"),
        (["model.gate_start=1"], "model.gate_start: Input should be less than 1"),
        (["model.pretrained=a", "model.head=new"], "pretrained=a brings its own head; leave it out"),
        (["model.source=null", "model.head=new"], "the generator trains alone and head would mean nothing"),
        (["training.epoch_fraction=0"], "training.epoch_fraction"),
        (["data.train_file=a.jsonl"], "exactly one of task and train_file; both are given"),
        (["data.task=null"], "exactly one of task and train_file; neither is given"),
        (["data.validation_file=a.jsonl"], "validation_file goes with train_file"),
        (
            ["data.task=algebra"],
            "no built-in task is called 'algebra'; choose one of: arithmetic, arithmetic-reworded, facts, tickets",
        ),
        (["data.task=gsm8k"], "the task gsm8k reads its problems from a file; give train_file"),
        (["data.task=jsonl", "data.train_file=a.jsonl"], "the task jsonl is for evaluation; to train, leave task out"),
        (["data.variations=1"], "variations are made of the task math-word-problems alone; leave them out"),
        (["data.validation_fraction=1"], "data.validation_fraction"),
        (["training.num_epochs=2", "training.max_steps=5"], "num_epochs or max_steps, not both"),
        (["training.early_stopping_patience=5", "data.validation_fraction=0"], "needs validation data"),
        (["training.batch_size=many"], "training.batch_size: .* \\(given: 'many'\\)"),
    ],
)
def test_value_that_is_not_allowed_is_refused(config, overrides, message):
    with pytest.raises(UserError, match=message):
        load_settings(config(), overrides)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere.yaml is not there"):
        load_settings(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- data\n", "holds a list; write a mapping with model, data, training"),
        ("data: [", "is not valid YAML"),
        ("data: {task: facts}\ndata: {task: arithmetic}\n", "the key 'data' is given twice"),
        ("model: {}\n", "data is missing"),
        ("data:\n", "data: Input should be a valid dictionary"),
        ("data: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
    ],
)
def test_file_that_is_no_configuration_is_refused(config, text, message):
    with pytest.raises(UserError, match=message):
        load_settings(config(text))


def test_every_key_is_described():
    assert all(field.description for field in known_keys().values())


def test_the_settings_page_in_the_docs_is_up_to_date():
    page = Path(__file__).parents[1] / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == settings_page(), "run: python -m llm_modules.settings > docs/settings.md"
