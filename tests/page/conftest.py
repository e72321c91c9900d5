"""A server of tiny modules, and a browser that visits its page."""

import shutil

import pytest
import torch
from playwright.sync_api import sync_playwright
from transformers import AutoModelForCausalLM

from llm_modules.serving.app import create_app
from llm_modules.serving.modules import Modules
from tests.conftest import randomise_, tiny_pair, tiny_source_config, tiny_tokenizer
from tests.page.visits import Visit
from tests.tiny_server import ROTARY, running, tiny_source

END = 2  # the token that ends an answer


def quitter(source):
    """A pair that writes nothing but the end."""
    pair = tiny_pair(source=source, head="new", num_bridge_layers=1)
    with torch.no_grad():
        pair.generator.ln_f.weight.zero_()
        pair.generator.ln_f.bias.fill_(1)
        pair.head.weight.zero_()[END] = 1
    return pair


@pytest.fixture(scope="session")
def modules():
    """Two pairs that write on and on, one that writes nothing, their source, and a generator that stands alone."""
    source = tiny_source()
    alone = AutoModelForCausalLM.from_config(tiny_source_config(max_position_embeddings=4096)).eval()
    with torch.no_grad():
        source.output_matrix[END] = alone.lm_head.weight[END] = 0  # never the likeliest
    endless = {"source": source, "generator": tiny_source_config(**ROTARY)}
    modules = Modules(source, max_shared_tokens=1_000)
    for name, model in {
        "adder": randomise_(tiny_pair(**endless)),
        "rereader": randomise_(tiny_pair(**endless, visibility="causal", num_bridge_layers=1)),
        "alone": alone,
        "quitter": quitter(source),
    }.items():
        modules._add(name, model, tiny_tokenizer())
    return modules


@pytest.fixture(scope="session")
def served(modules):
    """Address of a server of them."""
    with running(create_app(modules)) as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium to open the page in: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, served):
    visit = Visit(browser, served)
    yield visit
    visit.close()
