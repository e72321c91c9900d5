"""Prompt and response are tokenised apart, and the prompt of training is the prompt of inference."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_modules.data.templates import encode, encode_prompt, with_template
from llm_modules.errors import UserError

SYSTEM = {"role": "system", "content": "Think."}
QUESTION = {"role": "user", "content": "What is the sum of 5 and 5?"}
ANSWER = {"role": "assistant", "content": "10"}

# Letters, figures and signs: the default source's tokenizer has no token for some bytes of rare characters.
CHARACTERS = st.characters(max_codepoint=0x24F, exclude_categories=("Cc",)) | st.just("\n")
TURNS = st.lists(st.text(CHARACTERS, min_size=1, max_size=30).filter(str.strip), min_size=2, max_size=6).map(
    lambda texts: [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts[: len(texts) // 2 * 2])
    ]
)


def changed(tokenizer, **attributes):
    twin = copy.deepcopy(tokenizer)
    for name, value in attributes.items():
        setattr(twin, name, value)
    return twin


def test_chat_example_is_what_the_template_writes_up_to_the_end_of_sequence(tokenizer):
    example = encode([QUESTION, ANSWER], with_template(tokenizer, "chat"))
    whole = tokenizer.apply_chat_template([QUESTION, ANSWER], tokenize=False)
    assert tokenizer.decode(example.input_ids) == whole.removesuffix("\n")
    assert tokenizer.decode(example.response_ids) == "10<|im_end|>"


def test_chat_prompt_equals_the_tokenizers_own(tokenizer):
    own = tokenizer.apply_chat_template([QUESTION], add_generation_prompt=True, return_dict=False)
    assert encode_prompt([QUESTION], with_template(tokenizer, "chat")) == own


def test_plain_example_is_the_published_form(tokenizer):
    example = encode([SYSTEM, QUESTION, ANSWER], with_template(tokenizer, "plain"))
    assert tokenizer.decode(example.prompt_ids) == (
        "System:\n\nThink.\n\nUser:\n\nWhat is the sum of 5 and 5?\n\nAssistant:\n\n"
    )
    assert tokenizer.decode(example.response_ids) == "10<|im_end|>"


def test_plain_form_without_a_system_turn_has_no_system_part(tokenizer):
    assert tokenizer.decode(encode_prompt([QUESTION], with_template(tokenizer, "plain"))).startswith("User:\n\nWhat")


def test_plain_form_closes_earlier_turns(tokenizer):
    prompt = tokenizer.decode(encode_prompt([QUESTION, ANSWER, QUESTION], with_template(tokenizer, "plain")))
    assert "Assistant:\n\n10\n\nUser:" in prompt


@pytest.mark.parametrize("template", ["chat", "plain"])
@settings(max_examples=40)
@given(turns=TURNS)
def test_training_prompt_equals_inference_prompt_and_ends_in_one_eos(tokenizer, template, turns):
    tokenizer = with_template(tokenizer, template)
    example = encode(turns, tokenizer)
    assert example.prompt_ids == encode_prompt(turns[:-1], tokenizer)
    assert example.response_ids.count(tokenizer.eos_token_id) == 1
    assert example.response_ids[-1] == tokenizer.eos_token_id
    assert len(example) == len(example.input_ids) == len(example.prompt_ids) + len(example.response_ids)
    assert tokenizer.decode(example.response_ids[:-1]) == turns[-1]["content"]


def test_begin_of_sequence_is_never_doubled(tokenizer):
    assert encode_prompt([QUESTION], with_template(tokenizer, "chat"))[:2].count(tokenizer.bos_token_id) == 1


def adding_special_tokens(tokenizer):
    """The tokenizer as one that starts and ends every text with special tokens, as Llama's and T5's do."""

    class Adding(type(tokenizer)):
        def __call__(self, text, add_special_tokens=True, **options):
            ids = super().__call__(text, add_special_tokens=False)["input_ids"]
            return {"input_ids": [self.bos_token_id, *ids, self.eos_token_id] if add_special_tokens else ids}

    twin = copy.deepcopy(tokenizer)
    twin.__class__ = Adding
    return twin


def test_plain_prompt_starts_with_the_begin_token_of_a_tokenizer_that_wants_one(tokenizer):
    wanted = encode([QUESTION, ANSWER], with_template(adding_special_tokens(tokenizer), "plain"))
    bare = encode([QUESTION, ANSWER], with_template(tokenizer, "plain"))
    assert wanted.prompt_ids == [tokenizer.bos_token_id, *bare.prompt_ids]
    assert wanted.response_ids == bare.response_ids


def test_template_that_writes_another_end_of_turn_keeps_it_before_eos(tokenizer):
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    example = encode([QUESTION, ANSWER], with_template(changed(tokenizer, chat_template=template), "chat"))
    assert tokenizer.decode(example.response_ids) == "10[end]<|im_end|>"


def test_template_whose_generation_prompt_is_not_repeated_trains_on_the_bare_answer(tokenizer):
    template = "{% for m in messages %}{{ m.content }}|{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
    example = encode([QUESTION, ANSWER], with_template(changed(tokenizer, chat_template=template), "chat"))
    assert tokenizer.decode(example.response_ids) == "10<|im_end|>"


def test_chat_without_a_chat_template_is_refused(tokenizer):
    with pytest.raises(UserError, match="needs a chat template.*use template='plain'"):
        encode_prompt([QUESTION], with_template(changed(tokenizer, chat_template=None), "chat"))


def test_turns_that_the_chat_template_refuses_are_named(tokenizer):
    template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UserError, match="system → user: System role not supported"):
        encode_prompt([SYSTEM, QUESTION], with_template(changed(tokenizer, chat_template=template), "chat"))


def test_tokenizer_without_end_of_sequence_is_refused(tokenizer):
    with pytest.raises(UserError, match="no end-of-sequence token"):
        encode([QUESTION, ANSWER], with_template(changed(tokenizer, eos_token=None), "plain"))


@pytest.mark.parametrize("messages", [[], [SYSTEM], [{"role": "user", "content": " "}]])
def test_empty_prompt_is_refused(tokenizer, messages):
    with pytest.raises(UserError, match="prompt is empty"):
        encode_prompt(messages, with_template(tokenizer, "plain"))


@pytest.mark.parametrize("messages", [[], [QUESTION]])
def test_example_without_an_answer_is_refused(tokenizer, messages):
    with pytest.raises(UserError, match="must end with an assistant turn"):
        encode(messages, with_template(tokenizer, "chat"))
