"""A server of tiny modules, and a browser that visits its page."""

import shutil
from threading import Thread

import pytest
import torch
from playwright.sync_api import sync_playwright
from transformers import AutoModelForCausalLM

from llm_modules.serving.app import create_app
from llm_modules.serving.modules import Modules
from llm_modules.serving.server import listening, running_server
from tests.conftest import randomise_, tiny_pair, tiny_source_config, tiny_tokenizer
from tests.page.visits import Visit


def store_endless(folder, seed):
    """A tiny language model that never ends an answer, and its tokenizer."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_source_config())
    with torch.no_grad():
        model.lm_head.weight[2] = 0  # never the likeliest
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def store_pair(folder, source, **choices):
    generator = tiny_source_config(hidden_size=12, num_hidden_layers=1, bos_token_id=None)
    model = randomise_(tiny_pair(source=str(source), generator=generator, **choices))
    model.tokenizer = tiny_tokenizer()
    model.save_pretrained(folder)


def store_quitter(folder, source):
    """A pair that writes nothing but the end."""
    model = tiny_pair(source=str(source), head="new", num_bridge_layers=1)
    model.tokenizer = tiny_tokenizer()
    with torch.no_grad():
        model.generator.ln_f.weight.zero_()
        model.generator.ln_f.bias.fill_(1)
        model.head.weight.zero_()[2] = 1
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Folder of three pairs, their source, and a generator that stands alone."""
    folder = tmp_path_factory.mktemp("served")
    store_endless(folder / "source", seed=5)
    store_endless(folder / "alone", seed=6)
    store_pair(folder / "adder", folder / "source")
    store_pair(folder / "rereader", folder / "source", visibility="causal", num_bridge_layers=1)
    store_quitter(folder / "quitter", folder / "source")
    return folder


@pytest.fixture(scope="session")
def served(folder):
    """Address of a server of them."""
    names = ("adder", "rereader", "alone", "quitter")
    modules = Modules.open([str(folder / name) for name in names], max_shared_tokens=1_000)
    server = running_server(create_app(modules))
    with listening("127.0.0.1", 0) as listener:
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


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
