"""Shared parts of the tests: tiny random pairs, and the real default source."""

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPTNeoConfig, LlamaConfig, PreTrainedTokenizerFast, logging

from llm_modules import CombinedModel, Source
from llm_modules.default_source import built_in_source
from llm_modules.errors import UserError
from llm_modules.files import cache_folder

logging.set_verbosity_error()
settings.register_profile("any-machine", deadline=None)  # a busy machine is no mistake of the code
settings.load_profile("any-machine")
torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings

# every dimension differs, so that a transposed tensor cannot hide
D_SOURCE, D_GENERATOR, VOCAB, SOURCE_LAYERS = 24, 16, 67, 3


def tiny_source_config(**changes):
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": D_SOURCE,
        "intermediate_size": 40,
        "num_hidden_layers": SOURCE_LAYERS,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "initializer_range": 0.3,  # far from uniform, so that a wrong state shows
    }
    return LlamaConfig(**(fields | changes))


def tiny_generator_config(**changes):
    fields = {
        "vocab_size": 5,
        "hidden_size": D_GENERATOR,
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
        "num_heads": 4,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return GPTNeoConfig(**(fields | changes))


def tiny_pair(seed=0, source=None, generator=None, **choices):
    """A random pair in eval mode; choices as for `CombinedModel.from_modules`."""
    torch.manual_seed(seed)
    fields = {"num_bridge_layers": 2, "num_heads": 2, "d_adapter": 10, "dropout": 0.0}
    source = tiny_source_config() if source is None else source
    generator = tiny_generator_config() if generator is None else generator
    return CombinedModel.from_modules(source, generator, **(fields | choices)).eval()


def randomise_(model, scale=0.3):
    """Move every trainable parameter, so that zero-initialised ones take part."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return model


def random_ids(batch, length, seed=1):
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """A cache folder for the tests, which shares only the converted sources with the user's."""
    shared = cache_folder() / "sources"
    shared.mkdir(parents=True, exist_ok=True)
    own = tmp_path_factory.mktemp("cache")
    (own / "sources").symlink_to(shared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_MODULES_CACHE", str(own))
        patch.setenv("XDG_STATE_HOME", str(own))
        yield own


@pytest.fixture
def stored_source(tmp_path):
    """Folder of a tiny stored source."""
    torch.manual_seed(5)
    folder = tmp_path / "source"
    AutoModelForCausalLM.from_config(tiny_source_config()).save_pretrained(folder)
    return folder


WORDS = [
    *["System", "User", "Assistant", ":", ".", ",", "?", "+", "-", "*", "/", "="],
    *map(str, range(10)),
    *"abcdefghijklmnopqrstuvwxyz",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }} : {{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant : {% endif %}"
)


def tiny_tokenizer():
    """Words, figures and letters, one token each, within the tiny source's vocabulary."""
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture
def talking_source(stored_source):
    """Folder of a tiny stored source with a tokenizer."""
    tiny_tokenizer().save_pretrained(stored_source)
    return stored_source


@pytest.fixture(scope="session")
def endless_source(tmp_path_factory):
    """Folder of a tiny stored source that talks, and never of itself ends."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("source")
    model = AutoModelForCausalLM.from_config(tiny_source_config())
    with torch.no_grad():
        model.lm_head.weight[2] = 0
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def endless_generator_config():
    """A generator without a position table."""
    return tiny_source_config(hidden_size=12, num_hidden_layers=1, bos_token_id=None)


@pytest.fixture(scope="session")
def default_source(own_cache):
    """The real default source, SmolLM2-135M-Instruct."""
    try:
        built_in_source("default")
    except UserError as error:
        pytest.skip(f"the default source is not installed: {error}")
    return Source.load("default")


@pytest.fixture(scope="session")
def tokenizer(default_source):
    return default_source.tokenizer
