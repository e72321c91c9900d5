"""`generate()` with our cache writes what a plain loop of full forwards writes."""

import threading

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoConfig,
    GraniteConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    TextIteratorStreamer,
    TextStreamer,
)

from llm_modules import CombinedModel, UserError
from tests.conftest import VOCAB, random_ids, randomise_, tiny_generator_config, tiny_pair, tiny_source_config

NEW = 9
WIRINGS = {
    "prompt": {"visibility": "prompt"},
    "prompt-identity-taps": {"visibility": "prompt", "start": "identity", "taps": [0, -1]},
    "causal": {"visibility": "causal"},
    "causal-new-head": {"visibility": "causal", "head": "new"},
    "bidirectional": {"visibility": "bidirectional", "head": "new"},
}
CACHED = [name for name in WIRINGS if name != "bidirectional"]

pytestmark = pytest.mark.filterwarnings("ignore:visibility='bidirectional'")


def pair(wiring="prompt", **kwargs):
    return randomise_(tiny_pair(**(WIRINGS[wiring] | kwargs)))


def write(model, ids, **kwargs):
    """The tokens that `generate` adds; never ends early, so that lengths can be compared."""
    fields = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    return model.generate(ids, **(fields | kwargs))[:, ids.shape[1] :]


@torch.no_grad()
def naive(model, ids, steps=NEW):
    """Greedy decoding without any cache: the whole text through the whole model for each token."""
    prompt_len = ids.shape[1]
    for _ in range(steps):
        prompts = (torch.arange(ids.shape[1]) < prompt_len).expand_as(ids)
        ids = torch.cat([ids, model(ids, prompt_mask=prompts).logits[:, -1:].argmax(-1)], dim=1)
    return ids[:, prompt_len:]


class Reads:
    """Counts what the source reads: the number of tokens of each run of its body."""

    def __init__(self, model):
        self.lengths = []
        model.source.model.base_model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module, args, kwargs):
        self.lengths.append(kwargs["input_ids"].shape[1])


# -- greedy, sampling, beams -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wiring", WIRINGS)
def test_greedy_equals_a_plain_loop_of_full_forwards(wiring):
    model, ids = pair(wiring), random_ids(2, 6)
    expected = naive(model, ids)
    assert len(expected.unique()) > 3  # not one token for ever
    assert torch.equal(write(model, ids), expected)
    assert torch.equal(write(model, ids, use_cache=False), expected)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_prompt_mask_or_no_attention_mask_changes_nothing(wiring):
    model, ids = pair(wiring), random_ids(1, 6)
    expected = write(model, ids)
    assert torch.equal(write(model, ids, attention_mask=None), expected)
    assert torch.equal(write(model, ids, prompt_mask=torch.ones_like(ids, dtype=torch.bool)), expected)
    assert torch.equal(
        model.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)[:, 6:], expected
    )


@pytest.mark.parametrize("wiring", CACHED)
def test_sampling_depends_on_the_seed_alone(wiring):
    model, ids = pair(wiring), random_ids(2, 6)

    def sample(seed, **kwargs):
        torch.manual_seed(seed)
        return write(model, ids, do_sample=True, temperature=0.9, top_k=20, top_p=0.98, **kwargs)

    assert torch.equal(sample(3), sample(3))
    assert torch.equal(sample(3), sample(3, use_cache=False))
    assert not torch.equal(sample(3), sample(4))


@pytest.mark.parametrize("wiring", WIRINGS)
def test_beams_with_a_cache_equal_beams_without(wiring):
    model, ids = pair(wiring), random_ids(2, 6)
    beams = write(model, ids, num_beams=3)
    assert torch.equal(beams, write(model, ids, num_beams=3, use_cache=False))
    assert torch.equal(beams[:1], write(model, ids[:1], num_beams=3))
    several = write(model, ids, num_beams=3, num_return_sequences=3)
    assert torch.equal(several[::3], beams)
    assert len({tuple(row) for row in several[:3].tolist()}) == 3


@pytest.mark.parametrize("wiring", CACHED)
def test_several_sampled_sequences_differ(wiring):
    model, ids = pair(wiring), random_ids(2, 6)
    torch.manual_seed(0)
    cached = write(model, ids, do_sample=True, num_return_sequences=3)
    assert cached.shape == (6, NEW)
    assert len({tuple(row) for row in cached.tolist()}) == 6
    torch.manual_seed(0)
    assert torch.equal(write(model, ids, do_sample=True, num_return_sequences=3, use_cache=False), cached)


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("wiring", WIRINGS)
def test_prompts_of_unequal_length_write_what_each_writes_alone(wiring, num_beams):
    model = pair(wiring)
    rows = [random_ids(1, length, seed=length) for length in (3, 8, 5)]
    ids = torch.cat([F.pad(row, (8 - row.shape[1], 0), value=2) for row in rows])
    mask = torch.cat([F.pad(torch.ones_like(row), (8 - row.shape[1], 0)) for row in rows])
    together = write(model, ids, attention_mask=mask, num_beams=num_beams)
    for row, tokens in enumerate(rows):
        assert torch.equal(together[row : row + 1], write(model, tokens, num_beams=num_beams))


@pytest.mark.parametrize("wiring", CACHED)
def test_text_drafted_from_the_prompt_equals_greedy(wiring):
    model = pair(wiring, generator=tiny_generator_config(vocab_size=VOCAB))  # transformers drafts in this vocabulary
    ids = random_ids(1, 6).repeat(1, 3)
    expected = write(model, ids, max_new_tokens=20)
    ids = torch.cat([ids, expected[:, :8]], dim=1)  # so that some drafts are right
    assert torch.equal(write(model, ids, prompt_lookup_num_tokens=3), write(model, ids))


@pytest.mark.parametrize("wiring", ["causal", "causal-new-head"])
def test_a_cache_kept_from_one_request_serves_the_next(wiring):
    model, ids = pair(wiring), random_ids(1, 6)
    first = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, random_ids(1, 4, seed=8)], dim=1)
    expected = write(model, longer)
    reads = Reads(model)
    assert torch.equal(write(model, longer, past_key_values=first.past_key_values), expected)
    assert reads.lengths == [5] + [1] * (NEW - 1)  # the last token written was not read before


def test_with_prompt_visibility_a_kept_cache_takes_no_second_prompt():
    model, ids = pair("prompt"), random_ids(1, 6)
    first = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, random_ids(1, 2, seed=4)], dim=1)
    with pytest.raises(UserError, match="the whole prompt must come in the first call; it has ended already"):
        write(model, longer, past_key_values=first.past_key_values)


@pytest.mark.parametrize("visibility", ["prompt", "causal"])
def test_an_answer_can_be_gone_on_with(visibility):
    model, ids = pair(visibility), random_ids(2, 6)
    kwargs = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    first = model.generate(ids, max_new_tokens=5, **kwargs)
    second = model.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=4, **kwargs)
    assert torch.equal(second.sequences, model.generate(ids, max_new_tokens=9, **kwargs).sequences)


def test_writing_stops_at_the_sources_end_of_sequence():
    model, ids = pair(), random_ids(1, 6)
    free = write(model, ids)
    model.generation_config.eos_token_id = int(free[0, 3])
    stop = free[0].tolist().index(int(free[0, 3])) + 1
    assert torch.equal(model.generate(ids, max_new_tokens=NEW, do_sample=False)[:, 6:], free[:, :stop])


def test_max_new_tokens_is_kept():
    assert write(pair(), random_ids(1, 4), max_new_tokens=5).shape == (1, 5)


def test_more_positions_than_the_generator_has_are_refused_before_writing():
    model = pair(generator=tiny_generator_config(max_position_embeddings=16))
    assert write(model, random_ids(1, 7), max_new_tokens=10).shape == (1, 10)
    with pytest.raises(UserError, match="prompt and max_new_tokens need 17 positions, the generator has 16"):
        write(model, random_ids(1, 7), max_new_tokens=11)


def test_other_caches_are_refused_by_name():
    with pytest.raises(UserError, match="cache_implementation='static' is not supported; leave it out"):
        write(pair(), random_ids(1, 4), cache_implementation="static")


# -- what the source reads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_beams", [1, 3])
def test_with_prompt_visibility_the_source_runs_once_per_request(num_beams):
    model = pair("prompt")
    reads = Reads(model)
    write(model, random_ids(2, 6), num_beams=num_beams)
    assert reads.lengths == [6]
    write(model, random_ids(2, 4), num_beams=num_beams)
    assert reads.lengths == [6, 4]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_with_causal_visibility_the_source_reads_one_token_per_step(num_beams):
    model = pair("causal")
    reads = Reads(model)
    write(model, random_ids(2, 6), num_beams=num_beams)
    assert reads.lengths == [6] + [1] * (NEW - 1)


def test_bidirectional_reads_everything_again_at_each_step():
    model = pair("bidirectional")
    reads = Reads(model)
    write(model, random_ids(1, 6))
    assert reads.lengths == list(range(6, 6 + NEW))


@pytest.mark.parametrize("kwargs", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
def test_knowledge_read_before_is_written_from_without_the_source(kwargs):
    model, ids = pair("prompt"), random_ids(2, 6)
    expected = write(model, ids, **kwargs)
    knowledge = model.read(ids)
    reads = Reads(model)
    assert torch.equal(write(model, ids, knowledge=knowledge, **kwargs), expected)
    assert reads.lengths == []


def test_knowledge_of_padded_prompts_is_read_where_there_is_text():
    model, ids = pair("prompt"), random_ids(2, 6)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    knowledge = model.read(ids, mask)
    assert torch.equal(
        write(model, ids, attention_mask=mask, knowledge=knowledge), write(model, ids, attention_mask=mask)
    )


def test_knowledge_for_causal_generation_is_refused_with_the_way_out():
    model, ids = pair("causal"), random_ids(1, 6)
    with pytest.raises(UserError, match="let generate\\(\\) read the prompt itself"):
        write(model, ids, knowledge=model.read(ids))


# -- text --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def letters():
    """A tokenizer whose token `i` is one visible character, as large as the tiny vocabulary."""
    vocab = {chr(ord("0") + i): i for i in range(VOCAB)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="0"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("wiring", ["prompt", "causal"])
def test_streamers_receive_the_text_token_by_token(wiring, letters, capsys):
    model, ids = pair(wiring), random_ids(1, 6)
    expected = letters.decode(write(model, ids)[0])
    write(model, ids, streamer=TextStreamer(letters, skip_prompt=True))
    assert capsys.readouterr().out.strip() == expected
    pieces = TextIteratorStreamer(letters, skip_prompt=True, timeout=60)
    thread = threading.Thread(target=write, args=(model, ids), kwargs={"streamer": pieces})
    thread.start()
    assert "".join(pieces) == expected
    thread.join()


@pytest.mark.parametrize("wiring", CACHED)
def test_stop_strings_end_the_text(wiring, letters):
    model, ids = pair(wiring), random_ids(1, 6)
    free = letters.decode(write(model, ids)[0])
    stop = free[3:5]
    stopped = letters.decode(write(model, ids, stop_strings=[stop], tokenizer=letters)[0])
    assert stopped == free[: free.index(stop) + 2]


def test_the_default_source_stops_at_a_string(default_source, tokenizer):
    generator = tiny_generator_config()
    model = tiny_pair(source=default_source, generator=generator, visibility="causal", start="identity")
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    text = tokenizer.decode(
        model.generate(ids, max_new_tokens=8, do_sample=False, stop_strings=["Paris"], tokenizer=tokenizer)[0]
    )
    assert text == "The capital of France is Paris"


# -- every kind of generator and source --------------------------------------------------------------------------------

BODY = {"vocab_size": 5, "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "bos_token_id": 1}
ROTARY = BODY | {"intermediate_size": 20, "num_key_value_heads": 2, "eos_token_id": 2}
GENERATORS = {
    "gpt_neo": tiny_generator_config(),
    "llama": LlamaConfig(**ROTARY),
    "qwen2": Qwen2Config(**ROTARY),
    "gpt2": GPT2Config(vocab_size=5, n_embd=16, n_head=4, n_layer=2, n_positions=64, bos_token_id=1, eos_token_id=2),
}
WIDE = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
GPT = {"vocab_size": VOCAB, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2}
SOURCES = {
    "llama": tiny_source_config(),
    "qwen2": Qwen2Config(**WIDE),
    "gpt2": GPT2Config(n_embd=24, n_head=3, n_layer=3, n_positions=64, **GPT),
    "gpt_neo": GPTNeoConfig(
        hidden_size=24, num_heads=3, num_layers=2, attention_types=[[["global", "local"], 1]], window_size=4, **GPT
    ),
    "gemma2": Gemma2Config(**WIDE, head_dim=8, final_logit_softcapping=3.0, sliding_window=4),
    "granite": GraniteConfig(**WIDE, logits_scaling=3.0, embedding_multiplier=2.0),
    "cohere": CohereConfig(**WIDE, logit_scale=0.5),
}


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("visibility", ["prompt", "causal"])
def test_every_generator_writes_cached_batched_saved_and_trained(kind, visibility, stored_source, tmp_path):
    model = randomise_(tiny_pair(source=stored_source, generator=GENERATORS[kind], visibility=visibility))
    rows = [random_ids(1, length, seed=length) for length in (3, 6)]
    ids = torch.cat([F.pad(row, (6 - row.shape[1], 0), value=2) for row in rows])
    mask = torch.cat([F.pad(torch.ones_like(row), (6 - row.shape[1], 0)) for row in rows])
    expected = torch.cat([naive(model, row) for row in rows])
    assert torch.equal(write(model, ids, attention_mask=mask), expected)
    model.save_pretrained(tmp_path / "model")
    loaded = CombinedModel.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(write(loaded, ids, attention_mask=mask), expected)
    assert_causal(model)
    assert_causal(loaded)
    loaded.train()
    loaded(
        ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100), prompt_mask=prompts_of(mask, 2)
    ).loss.backward()
    # a key's bias adds the same to every score of a query, which softmax cancels
    idle = {name for name, p in loaded.named_parameters() if p.grad is None or not p.grad.any()}
    assert {name for name in idle if not name.endswith(("key.bias", "k_proj.bias"))} == set()


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_starts_as_itself_and_is_read_with_a_cache(kind):
    model = tiny_pair(source=SOURCES[kind], visibility="causal", start="identity")
    ids, mask = random_ids(2, 10), torch.ones(2, 10, dtype=torch.long)
    mask[0, :3] = 0
    positions = (mask.cumsum(-1) - 1).clamp(0)
    with torch.no_grad():
        expected = model.source.model(ids, attention_mask=mask, position_ids=positions).logits
        found = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=0)
    assert expected.std() > 1e-2
    own = model.source.model.generate(
        ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=2
    )
    assert torch.equal(write(model, ids, attention_mask=mask), own[:, 10:])
    assert_causal(randomise_(model))


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_is_read_by_taps(kind):
    layers = SOURCES[kind].num_hidden_layers
    model = randomise_(tiny_pair(source=SOURCES[kind], visibility="prompt", taps=[0, 1, -1]))
    ids = random_ids(2, 7)
    states = model.read(ids).states
    with torch.no_grad():
        outputs = model.source.model.base_model(ids, output_hidden_states=True)
    for column, tap in enumerate((0, 1, layers)):
        torch.testing.assert_close(states[:, :, column], outputs.hidden_states[tap], atol=1e-5, rtol=0)
    torch.testing.assert_close(states[:, :, -1], outputs.last_hidden_state, atol=1e-5, rtol=0)
    assert torch.equal(write(model, ids), naive(model, ids))


# -- attention stays causal, however the parts came in -----------------------------------------------------------------


def prompts_of(mask, prompt_len):
    return mask.bool() & (mask.cumsum(-1) <= prompt_len)


@torch.no_grad()
def assert_causal(model):
    ids = random_ids(1, 9, seed=7)
    other = ids.clone()
    other[0, 5] = (other[0, 5] - 3 + 1) % (VOCAB - 3) + 3
    before, after = model(ids).logits, model(other).logits
    torch.testing.assert_close(after[:, :5], before[:, :5], atol=1e-5, rtol=0)
    assert not torch.allclose(after[:, 5], before[:, 5], atol=1e-4)


@pytest.mark.parametrize("visibility", ["prompt", "causal"])
@pytest.mark.parametrize("generator", ["gpt_neo", "llama"])
@pytest.mark.parametrize("source", ["llama", "gpt_neo"])
@pytest.mark.parametrize("given", ["config", "object", "folder"])
def test_attention_stays_causal_however_the_parts_come_in(visibility, generator, source, given, tmp_path):
    torch.manual_seed(0)
    parts = {"source": SOURCES[source], "generator": GENERATORS[generator]}
    if given != "config":
        parts = {role: AutoModelForCausalLM.from_config(config) for role, config in parts.items()}
    if given == "folder":
        for role, part in parts.items():
            part.save_pretrained(tmp_path / role)
        parts = {role: tmp_path / role for role in parts}
    model = randomise_(tiny_pair(**parts, visibility=visibility))
    assert_causal(model)
    model.save_pretrained(tmp_path / "model")
    assert_causal(model)
    shared = CombinedModel.from_pretrained(tmp_path / "model", source=model.source).eval()
    assert_causal(shared)
    assert_causal(model)
    if given == "folder":
        assert_causal(CombinedModel.from_pretrained(tmp_path / "model").eval())


# -- the head, folded once for decoding -------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", [{"start": "published"}, {"start": "identity"}, {"head": "new"}])
def test_folded_head_gives_the_same_logits_however_many_rows_it_is_laid_out_for(choices):
    model = randomise_(tiny_pair(visibility="prompt", **choices)).eval()
    ids = random_ids(5, 9)
    with torch.no_grad():
        plain = model(ids).logits
        for prepared_for in (1, 3, 1):
            model.fold_head_(prepared_for)
            assert (model._folded_head is None) == (prepared_for > 1 and choices.get("head") == "new")
            for num_rows in (1, 3, 5):
                found = model(ids[:num_rows]).logits
                torch.testing.assert_close(found, plain[:num_rows], atol=1e-5, rtol=1e-5)
                assert found.is_contiguous()


def test_folded_head_is_forgotten_when_the_head_changes_or_trains():
    model = randomise_(tiny_pair(visibility="prompt")).eval()
    ids = random_ids(2, 9)
    with torch.no_grad():
        model.fold_head_()
        model.head.weight.mul_(2)
        changed = model(ids).logits
        assert model._folded_head is None
        model.fold_head_()
        torch.testing.assert_close(model(ids).logits, changed, atol=1e-5, rtol=1e-5)
    assert model.train()._folded_head is None


def test_only_a_narrower_head_that_adds_to_nothing_is_folded():
    model = tiny_pair(visibility="causal", start="identity")
    model.fold_head_()
    assert model._folded_head is None
