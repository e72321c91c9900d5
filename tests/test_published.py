"""A checkpoint of the published code comes in whole, safely and with its own source, or is refused by name."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPTNeoConfig, Qwen2Config
from typer.testing import CliRunner

from llm_modules import CombinedModel, Source, UserError, VisibleKnowledge
from llm_modules.cli import app
from llm_modules.data.templates import PLAIN_TEMPLATE
from llm_modules.published import GENERATOR, SOURCE, import_folder, import_published, published_name
from tests.conftest import (
    D_GENERATOR,
    D_SOURCE,
    VOCAB,
    random_ids,
    randomise_,
    tiny_generator_config,
    tiny_pair,
    tiny_source_config,
    tiny_tokenizer,
)

GOLDEN = Path(__file__).parents[2] / "shared" / "reference_golden"
GATE = "qwen.cross_attention_layers.0.gate.bias"
WORDS = f"{GENERATOR}wte.weight"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the published code's outputs are not at {GOLDEN}")

pytestmark = pytest.mark.filterwarnings("ignore:visibility='bidirectional'")


# -- the published code's own outputs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The published checkpoint, imported into a folder and loaded again."""
    folder = tmp_path_factory.mktemp("reference")
    checkpoint = GOLDEN / "best_model_checkpoint.pth"
    weights = torch.load(checkpoint, weights_only=True)["model_state_dict"]
    source = AutoModelForCausalLM.from_config(Qwen2Config(**json.loads((GOLDEN / "source_config.json").read_text())))
    source.load_state_dict({name.removeprefix(SOURCE): w for name, w in weights.items() if name.startswith(SOURCE)})
    source.save_pretrained(folder / "source")
    config = GPTNeoConfig(**json.loads((GOLDEN / "generator_config.json").read_text()))
    config.save_pretrained(folder / "generator")
    import_folder(checkpoint, folder / "out", source=str(folder / "source"), generator=folder / "generator")
    return CombinedModel.from_pretrained(folder / "out").eval()


@needs_golden
@torch.no_grad()
def test_bridge_states_equal_the_published_ones(reference, golden):
    known = reference.read(golden["input_ids"])
    z, _ = reference.bridge(known.states, visible=VisibleKnowledge(known.mask, bidirectional=True))
    torch.testing.assert_close(z, golden["bridge_states"], atol=1e-4, rtol=0)


@needs_golden
@torch.no_grad()
def test_logits_equal_the_published_ones(reference, golden):
    torch.testing.assert_close(reference(golden["input_ids"]).logits, golden["logits"], atol=1e-4, rtol=0)


@needs_golden
def test_greedy_continuation_equals_the_published_one(reference, golden):
    prompt, expected = golden["greedy_prompt"], golden["greedy_continuation"]
    written = reference.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False, eos_token_id=None
    )
    assert torch.equal(written[:, prompt.shape[1] :], expected)


# -- a small checkpoint in the published layout ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A stored source that talks, a generator's configuration, and a pair that the published code could have made."""
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(tiny_source_config()).save_pretrained(folder / "source")
    tiny_tokenizer().save_pretrained(folder / "source")
    tiny_generator_config().save_pretrained(folder / "generator")
    pair = tiny_pair(source=str(folder / "source"), visibility="bidirectional", head="new", num_bridge_layers=4)
    return SimpleNamespace(source=folder / "source", generator=folder / "generator", pair=randomise_(pair))


@pytest.fixture
def state(world):
    """What the published code would have saved for the pair; a test may change it."""
    tensors = {published_name(name): weight.clone() for name, weight in world.pair.state_dict().items()}
    tensors |= {f"{SOURCE}{name}": weight.clone() for name, weight in world.pair.source.model.state_dict().items()}
    return tensors | {WORDS: torch.randn(5, D_GENERATOR), "gptneo.base_model.lm_head.weight": torch.randn(5, 16)}


@pytest.fixture
def bring_in(world, tmp_path):
    """Save a state dict as a checkpoint and import it."""

    def save_and_import(state, *, whole=None, **changes):
        path = tmp_path / "best.pth"
        torch.save({"epoch": 3, "model_state_dict": state} if whole is None else whole, path)
        choices = {"source": str(world.source), "generator": str(world.generator), "num_heads": 2} | changes
        return import_published(path, **choices)

    return save_and_import


@pytest.fixture
def refusal(bring_in):
    """The message with which an import is refused."""

    def message(state, **changes):
        with pytest.raises(UserError) as refused:
            bring_in(state, **changes)
        return str(refused.value)

    return message


def assert_same(model, pair):
    expected, found = pair.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize(
    ("ours", "published"),
    [
        ("bridge.pre_projection.weight", "qwen.pre_proj.weight"),
        ("bridge.skip_projection.bias", "qwen.proj.bias"),
        ("bridge.compress.4.weight", "qwen.intermediate_layers.4.weight"),
        ("bridge.layers.1.knowledge_norm.bias", "qwen.cross_attention_layers.1.cross_attn.norm1.bias"),
        ("bridge.layers.0.query_norm.bias", "qwen.cross_attention_layers.0.cross_attn.norm2.bias"),
        ("bridge.layers.0.query.bias", "qwen.cross_attention_layers.0.cross_attn.q_proj.bias"),
        ("bridge.layers.0.output.bias", "qwen.cross_attention_layers.0.cross_attn.out_proj.bias"),
        ("bridge.layers.0.adapter.down.bias", "qwen.cross_attention_layers.0.adapter.fc1.bias"),
        ("bridge.layers.0.adapter.norm.bias", "qwen.cross_attention_layers.0.adapter.norm.bias"),
        ("bridge.layers.0.gate.bias", GATE),
        ("generator.h.1.attn.attention.out_proj.bias", f"{GENERATOR}h.1.attn.attention.out_proj.bias"),
        ("head.weight", "gptneo.new_lm_head.weight"),
    ],
)
def test_names_are_the_published_ones(ours, published):
    assert published_name(ours) == published


@torch.no_grad()
def test_import_is_the_pair_that_the_checkpoint_was_made_of(world, state, bring_in, capsys):
    model = bring_in(state)
    assert_same(model, world.pair)
    assert torch.equal(model(random_ids(2, 9)).logits, world.pair(random_ids(2, 9)).logits)
    config = model.config
    assert (config.visibility, config.head, config.start) == ("bidirectional", "new", "published")
    assert (config.num_bridge_layers, config.d_adapter, config.num_heads) == (4, 10, 2)
    assert config.source_id == str(world.source)
    said = capsys.readouterr().out
    assert f"all {len(world.pair.source.model.state_dict())} tensors of the source in" in said
    assert f"left out: {WORDS} (the generator's own words" in said
    assert "left out: gptneo.base_model.lm_head.weight (" in said and "left out: epoch (state of the training" in said


def test_import_does_not_warn_of_the_leak(state, bring_in, recwarn):
    bring_in(state)
    assert not list(recwarn)


@pytest.mark.parametrize("form", ["bare", "distributed", "bf16 epoch beside", "old kind"])
def test_every_form_of_a_checkpoint_is_read(world, state, bring_in, form, tmp_path, capsys):
    if form == "old kind":
        torch.save({"model_state_dict": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        model = import_published(
            tmp_path / "old.pth", source=str(world.source), generator=tiny_generator_config(), num_heads=2
        )
        assert "read into memory as a whole" in capsys.readouterr().out
    else:
        distributed = {f"module.{name}": weight for name, weight in state.items()}
        beside = {"model_state_dict": state, "optimizer_state_dict": {"step": torch.ones((), dtype=torch.bfloat16)}}
        whole = {"bare": state, "distributed": {"model_state_dict": distributed}, "bf16 epoch beside": beside}[form]
        model = bring_in(None, whole=whole)
        assert ("left out: optimizer_state_dict" in capsys.readouterr().out) == (form == "bf16 epoch beside")
    assert_same(model, world.pair)


def test_buffers_of_older_versions_are_named_and_left_out(world, state, bring_in, capsys):
    state[f"{GENERATOR}h.1.attn.attention.bias"] = torch.ones(1, 1, 128, 128, dtype=torch.bool)
    state[f"{GENERATOR}h.1.attn.attention.masked_bias"] = torch.tensor(-1e9)
    state[f"{SOURCE}model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    assert_same(bring_in(state), world.pair)
    said = capsys.readouterr().out
    assert "h.1.attn.attention.bias, " in said and "h.1.attn.attention.masked_bias (attention masks" in said
    assert "rotary_emb.inv_freq (the source's rotary frequencies" in said


def test_what_is_left_out_may_hold_anything(world, state, bring_in):
    state[WORDS].fill_(torch.nan)
    assert_same(bring_in(state), world.pair)


# -- tensors that are not as they should be ----------------------------------------------------------------------------


def test_missing_unknown_and_misshapen_tensors_are_listed_together(state, refusal):
    del state["qwen.proj.bias"], state[f"{GENERATOR}ln_f.weight"]
    state["qwen.extra.weight"] = torch.ones(3, 7)
    state["bridge.layers.0.gate.bias"] = torch.ones(D_GENERATOR)  # our name is no published one
    state[GATE] = torch.ones(D_GENERATOR + 1)
    state["qwen.pre_proj.bias"] = torch.ones(D_SOURCE, dtype=torch.long)
    first, *problems = refusal(state).splitlines()
    assert first.endswith("6 tensors:")
    assert {problem.strip() for problem in problems} == {
        "missing: qwen.proj.bias, expected [16]",
        f"missing: {GENERATOR}ln_f.weight, expected [16]",
        "unknown: qwen.extra.weight [3, 7]",
        "unknown: bridge.layers.0.gate.bias [16]",
        f"wrong shape: {GATE} [17], expected [16]",
        "no floating-point numbers: qwen.pre_proj.bias is torch.int64",
    }


def test_a_checkpoint_of_something_else_lists_what_is_missing(refusal):
    message = refusal({"weight": torch.ones(3)})
    assert "missing: qwen.proj.weight" in message and "unknown: weight [3]" in message


def test_a_bridge_layer_left_out_is_missing(state, refusal):
    for name in [name for name in state if name.startswith("qwen.cross_attention_layers.1.")]:
        del state[name]
    message = refusal(state)
    assert "missing: qwen.cross_attention_layers.1.gate.bias" in message
    assert "unknown: qwen.cross_attention_layers.3.gate.bias" in message


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_named(state, refusal, value):
    state[GATE][3] = value
    state["gptneo.new_lm_head.weight"][2, 5] = value
    assert f"NaN or infinity in {GATE}, gptneo.new_lm_head.weight;" in refusal(state)


def test_what_is_no_tensor_is_named(state, refusal):
    state[GATE] = "closed"
    state["qwen.proj.bias"] = torch.ones(16).to_sparse()
    message = refusal(state)
    assert f"{GATE} (str)" in message and "qwen.proj.bias (torch.sparse_coo on cpu)" in message


# -- files that are not as they should be ------------------------------------------------------------------------------


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["torch", "old torch", "pickle", "new pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(world, state, tmp_path, kind):
    pickle.loads(pickle.dumps(Trap(tmp_path / "control")))
    assert (tmp_path / "control").exists()  # the trap works
    held, path = {"model_state_dict": state, "config": Trap(tmp_path / "sprung")}, tmp_path / "best.pth"
    if "torch" in kind:
        torch.save(held, path, _use_new_zipfile_serialization=kind == "torch")
    else:
        path.write_bytes(pickle.dumps(held["config"], protocol=4 if kind == "new pickle" else 2))
    with pytest.raises(UserError) as refused:
        import_published(path, source=str(world.source), generator=world.generator)
    assert not (tmp_path / "sprung").exists()
    if kind != "new pickle":  # such files are refused before any name in them is reached
        assert "holds code or objects beside its tensors" in str(refused.value)
        assert ".mkdir); nothing of it was run" in str(refused.value) and "tensors.pth" in str(refused.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_refused(world, state, tmp_path, share):
    path = tmp_path / "best.pth"
    torch.save({"model_state_dict": state}, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match=r"best.pth cannot be read .* cut off or damaged$"):
        import_published(path, source=str(world.source), generator=world.generator)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([torch.ones(2)], "holds a list, not a checkpoint"),
        (torch.ones(2), "holds a Tensor, not a checkpoint"),
        ({}, "holds no tensors"),
        ({"model_state_dict": 7}, "holds no tensors"),
        ({"epoch": 3, "state_dict": {"a": torch.ones(2)}}, r"epoch \(int\), state_dict \(dict\)"),
        ({3: torch.ones(2)}, r"3 \(torch.strided on cpu\)"),
    ],
)
def test_what_is_no_checkpoint_is_refused(refusal, held, message):
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(refusal(None, whole=held))


def test_a_text_file_a_folder_and_nothing_are_refused(world, tmp_path):
    (tmp_path / "notes.pth").write_text("hello there")
    for name, message in (
        ("notes.pth", "it is no PyTorch checkpoint"),
        (".", "is no file; give the checkpoint itself"),
        ("nowhere.pth", "nowhere.pth is not there; check the path"),
    ):
        with pytest.raises(UserError, match=message):
            import_published(tmp_path / name, source=str(world.source), generator=world.generator)


# -- the source in the checkpoint --------------------------------------------------------------------------------------


def test_a_source_of_another_width_or_vocabulary_is_refused(state, refusal):
    other = tiny_source_config(hidden_size=D_SOURCE + 6, vocab_size=VOCAB + 2)
    message = refusal(state, source=other)
    assert "a source of another width (24 in the checkpoint, 30 in the source given)" in message
    assert "a source of another vocabulary (67 in the checkpoint, 69 in the source given)" in message


def test_another_source_is_refused_with_the_first_and_the_largest_difference(world, state, refusal):
    first, largest = f"{SOURCE}model.layers.0.mlp.up_proj.weight", f"{SOURCE}model.norm.weight"
    state[first][0, 0] += 1e-4
    state[largest][3] += 0.5
    message = refusal(state)
    total = len(world.pair.source.model.state_dict())
    assert f"2 of {total} tensors of the source in" in message and f"are not those of {world.source}: " in message
    assert "first model.layers.0.mlp.up_proj.weight (by up to 0.0001), " in message
    assert "most of all model.norm.weight (by up to 0.5); give the source that" in message


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "nan"])
def test_source_tensors_that_cannot_be_compared_differ(state, refusal, change):
    name = f"{SOURCE}model.norm.weight"
    if change == "missing":
        del state[name]
    elif change == "unknown":
        state[f"{SOURCE}model.norm.bias"] = torch.ones(D_SOURCE)
    elif change == "shape":
        state[name] = torch.ones(D_SOURCE + 1)
    else:
        state[name][0] = torch.nan
    assert "1 of " in (message := refusal(state)) and "(on one side only, of another shape, or not finite)" in message


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_source_stored_in_another_dtype_is_the_same_source(world, state, bring_in, refusal, dtype):
    for name in state:
        if name.startswith(SOURCE):
            state[name] = state[name].to(dtype)
    assert_same(bring_in(state), world.pair)
    state[f"{SOURCE}model.norm.weight"][0] += 2**-4
    assert "1 of " in refusal(state)


def test_what_fp16_rounds_away_of_bf16_is_no_difference(world, state, bring_in):
    source = AutoModelForCausalLM.from_pretrained(world.source, dtype=torch.bfloat16)
    with torch.no_grad():
        source.model.norm.weight[0] = 3.3e-6  # fp16 knows multiples of 6e-8 here
    for name, weight in source.state_dict().items():
        state[f"{SOURCE}{name}"] = weight.half()
    assert state[f"{SOURCE}model.norm.weight"].bfloat16()[0] != source.model.norm.weight[0]
    bring_in(state, source=source)


def test_a_tied_head_is_compared_where_it_is_there(tmp_path, world, state, bring_in, refusal):
    tied = AutoModelForCausalLM.from_config(tiny_source_config(tie_word_embeddings=True))
    tied.save_pretrained(tmp_path / "tied")
    held = {name: weight for name, weight in state.items() if not name.startswith(SOURCE)}
    held |= {f"{SOURCE}{name}": weight.clone() for name, weight in tied.state_dict().items()}
    assert_same(bring_in(held, source=str(tmp_path / "tied")), world.pair)
    held[f"{SOURCE}lm_head.weight"][0, 0] += 1
    assert "first lm_head.weight (by up to 1)" in refusal(held, source=str(tmp_path / "tied"))
    del held[f"{SOURCE}lm_head.weight"]
    assert_same(bring_in(held, source=str(tmp_path / "tied")), world.pair)


def test_a_checkpoint_without_source_weights_says_so(world, state, bring_in, capsys):
    bare = {name: weight for name, weight in state.items() if not name.startswith(SOURCE)}
    assert_same(bring_in(bare), world.pair)
    assert f"nothing shows whether it was trained with {world.source}" in capsys.readouterr().out


def test_a_source_without_its_body_cannot_be_compared(world, state, refusal):
    assert "load it whole" in refusal(state, source=Source.load(world.source, tables_only=True))


# -- the generator's configuration -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 20}, "a generator of another width (16 in the checkpoint, 20 in the generator's"),
        (
            {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
            "a generator with another number of layers (2 in the checkpoint, 4 in",
        ),
        ({"max_position_embeddings": 64}, "another number of positions (128 in the checkpoint, 64 in"),
        ({"intermediate_size": 40}, "a generator of another inner width (64 in the checkpoint, 40 in"),
        ({"num_heads": 3}, "num_heads=3 does not divide its hidden_size=16"),
    ],
)
def test_a_generator_that_disagrees_is_refused(state, refusal, changes, message):
    assert message in refusal(state, generator=tiny_generator_config(**changes))


def test_a_generator_of_another_kind_is_refused(state, refusal):
    assert "is of a 'gpt2'" in refusal(state, generator=GPT2Config(n_embd=16, n_layer=2, n_head=4))


def test_heads_that_do_not_divide_the_width_are_refused(state, refusal):
    assert "d_generator=16 is not divisible by num_heads=3" in refusal(state, num_heads=3)


def test_a_generator_without_a_configuration_is_refused(state, refusal, tmp_path):
    assert "holds no config.json" in refusal(state, generator=tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json cannot be read" in refusal(state, generator=tmp_path)
    assert "is no folder" in refusal(state, generator=tmp_path / "config.json")


def test_a_generator_id_is_fetched_from_the_hub(state, refusal, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "'nobody/nothing' is no local folder and could not be fetched" in refusal(state, generator="nobody/nothing")


# -- the command -------------------------------------------------------------------------------------------------------


def command_line(world, checkpoint, out):
    choices = ["--source", world.source, "--generator", world.generator, "--out", out, "--num-heads", 2]
    return ["import-reference", *map(str, [checkpoint, *choices])]


def test_import_reference_makes_a_folder_that_answers(world, state, tmp_path):
    checkpoint, out = tmp_path / "best.pth", tmp_path / "out"
    torch.save({"model_state_dict": state}, checkpoint)
    line = [sys.executable, "-m", "llm_modules.cli", *command_line(world, checkpoint, out)]
    result = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr and "Traceback" not in result.stderr
    total = sum(weight.numel() for weight in world.pair.parameters())
    assert f"; {total:,} in all" in result.stdout and "Its training leaked" in result.stdout
    assert f"llm-modules chat {out}" in result.stdout and f"llm-modules generate {out}" in result.stdout
    assert "no tokenizer" not in result.stdout
    assert_same(CombinedModel.from_pretrained(out), world.pair)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == PLAIN_TEMPLATE.replace("{{ first }}", "")
    answer = CliRunner().invoke(app, ["generate", str(out), "--prompt", "1 + 2 ?", "--max-new-tokens", "5"])
    assert answer.exit_code == 0
    prompt = tokenizer("User:\n\n1 + 2 ?\n\nAssistant:\n\n", add_special_tokens=False, return_tensors="pt")["input_ids"]
    written = world.pair.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5, do_sample=False)
    expected = tokenizer.decode(written[0, prompt.shape[1] :], skip_special_tokens=True)
    assert expected and answer.stdout.split() == expected.split()


def test_a_source_without_a_tokenizer_is_told(world, state, tmp_path, capsys):
    AutoModelForCausalLM.from_pretrained(world.source).save_pretrained(tmp_path / "mute")
    torch.save(state, tmp_path / "best.pth")
    import_folder(
        tmp_path / "best.pth",
        tmp_path / "out",
        source=str(tmp_path / "mute"),
        generator=world.generator,
        num_heads=2,
    )
    assert "chat needs one in this folder first" in capsys.readouterr().out


def test_a_folder_in_use_is_refused_and_untouched(world, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    result = CliRunner().invoke(app, command_line(world, tmp_path / "nowhere.pth", tmp_path / "out"))
    assert result.exit_code == 2 and "exists and is not empty; choose another folder" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_refused_checkpoint_leaves_no_folder(world, state, tmp_path):
    state[GATE][0] = torch.nan
    torch.save(state, tmp_path / "best.pth")
    result = CliRunner().invoke(app, command_line(world, tmp_path / "best.pth", tmp_path / "out"))
    assert result.exit_code == 2 and "error: " in result.stderr and GATE in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["best.pth"]
