"""What a GPU must not change: answers, the frozen source, resumption. Skipped where there is none."""

import pytest
import torch
import yaml

from llm_modules.compare.counting import counted
from llm_modules.fingerprint import fingerprint_model
from llm_modules.loading import load_trained
from llm_modules.machine import best_device, machine, peak_gb
from llm_modules.training import train
from tests.conftest import random_ids, randomise_, tiny_pair
from tests.several import launch
from tests.test_contracts import WIRINGS, ids_of, prompt_mask
from tests.test_training import conversations, run_settings, write_lines

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("wiring", WIRINGS, ids=ids_of)
def test_a_gpu_gives_the_logits_of_a_processor(wiring):
    model, ids, prompts = randomise_(tiny_pair(**wiring)), random_ids(2, 11), prompt_mask(2, 11, 4)
    with torch.no_grad():
        wanted = model(ids, prompt_mask=prompts).logits
        found = model.cuda()(ids.cuda(), prompt_mask=prompts.cuda()).logits
    assert model.source.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), wanted, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("visibility", ["prompt", "causal"])
def test_cached_and_left_padded_answers_are_those_of_the_whole_text(visibility):
    model, ids = randomise_(tiny_pair(visibility=visibility)).cuda(), random_ids(2, 9).cuda()
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    written = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
    alone = model.generate(ids[:1, 3:], max_new_tokens=6, do_sample=False, eos_token_id=None)
    torch.testing.assert_close(written[0, 3:], alone[0])
    with torch.no_grad():
        whole = model(written[1:], prompt_mask=prompt_mask(1, 15, 9).cuda()).logits[0, 8:-1].argmax(-1)
    torch.testing.assert_close(written[1, 9:], whole)


@pytest.mark.parametrize("features", ["memory", "online", "auto"])
@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_trained_on_a_gpu_saved_and_loaded_there(tmp_path, talking_source, features, precision):
    settings = run_settings(tmp_path / "run", talking_source, write_lines(tmp_path / "train.jsonl", conversations()))
    training = settings.training.model_copy(update={"features": features, "precision": precision})
    folder = train(settings.model_copy(update={"training": training}))
    model, _ = load_trained(folder)
    assert model.device.type == model.source.device.type == "cuda"
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert model.source.fingerprint == fingerprint_model(model.source.model.cpu())


def test_attention_with_fewer_key_heads_is_counted_about_as_on_a_processor():
    model, ids = tiny_pair(), random_ids(2, 12)  # the tiny source has three heads for queries and one for keys

    def work(device):
        return counted(lambda: model.to(device)(ids.to(device)).logits.sum().backward()).flops

    assert work("cuda") == pytest.approx(work("cpu"), rel=0.1)  # some kernels compute scores again on the way back


def test_launched_by_torchrun_a_process_trains_on_its_gpu(tmp_path, talking_source):
    settings = run_settings(tmp_path / "run", talking_source, write_lines(tmp_path / "train.jsonl", conversations()))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_unset=True)))
    done = launch(1, "train", tmp_path / "recipe.yaml", env={"CUDA_VISIBLE_DEVICES": "0"})
    assert done.returncode == 0 and "saved" in done.stdout, done.stderr[-2000:]


def test_figures_name_the_gpu_and_count_its_memory():
    held = torch.zeros(2**20, device=best_device())
    assert machine()["accelerator"] == torch.cuda.get_device_name() and held.is_cuda
    assert 0.004 < peak_gb() < 100
