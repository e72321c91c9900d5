r"""Turn a conversation into token ids: a prompt and a response, tokenised apart.

Because the two are tokenised apart, no token straddles the boundary: the prompt ids of training are the very ids that
`encode_prompt` gives at inference.

Two templates, both chat templates of the tokenizer, so that whoever loads the saved tokenizer writes prompts in the
form that was trained (`with_template`):

- `chat`: the one the tokenizer came with.
- `plain`: the published form, `System:\n\n{system}\n\nUser:\n\n{question}\n\nAssistant:\n\n{answer}\n\n`. Without a
  system turn its part is left out. The last answer is followed by the end-of-sequence token in place of the closing
  `\n\n`, which separates turns and so is written only where another turn follows.

The response is what the template writes after its generation prompt, up to and with the end-of-sequence token. Line
breaks that a template writes after that token are left out: generation has stopped by then.
"""

import copy
from dataclasses import dataclass
from typing import Literal

from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llm_modules.data.records import Conversation
from llm_modules.errors import UserError

Template = Literal["chat", "plain"]

PLAIN_TEMPLATE = (
    "{{ first }}{% for message in messages %}"
    "{{ message['role'] | capitalize }}:\n\n{{ message['content'] }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\n\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One training example: the ids of a prompt and of its response.

    Attributes:
        prompt_ids: Ids that are given at inference.
        response_ids: Ids to be written, the end-of-sequence token included.
        knowledge: `[source_len, taps, d_source]`, what the frozen source says about the example, computed once; for
            visibility `prompt`, `source_len` is the length of the prompt. None: the source reads it in each step.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    knowledge: Tensor | None = None

    @property
    def input_ids(self) -> list[int]:
        """Prompt and response in one row."""
        return self.prompt_ids + self.response_ids

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def with_template(tokenizer: PreTrainedTokenizerBase, template: Template) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer whose chat template writes the wanted form.

    Raises:
        UserError: `chat` is wanted and the tokenizer has no chat template.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if template == "plain":
        tokenizer.chat_template = PLAIN_TEMPLATE.replace("{{ first }}", _begin_of_sequence(tokenizer))
    elif not tokenizer.chat_template:
        raise UserError(
            f"template='chat' needs a chat template, and the tokenizer of {tokenizer.name_or_path!r} has none; "
            "use template='plain' or set tokenizer.chat_template"
        )
    return tokenizer


def encode(messages: Conversation, tokenizer: PreTrainedTokenizerBase) -> Example:
    """Encode a conversation that ends with an assistant turn; that turn is the response, all before it the prompt.

    Raises:
        UserError: The last turn is not the assistant's, or the tokenizer cannot do what is needed.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise UserError("a training example must end with an assistant turn; cut the conversation after one")
    *before, answer = messages
    prompt_ids = encode_prompt(before, tokenizer)
    if tokenizer.eos_token is None:
        raise UserError("the tokenizer has no end-of-sequence token, so answers would never end; set its eos_token")
    prompt_text = _render(before, tokenizer, add_generation_prompt=True)
    whole_text = _render(messages, tokenizer, add_generation_prompt=False)
    text = answer["content"]
    # Some templates end their generation prompt with text that a finished turn lacks; the bare answer remains.
    if whole_text.startswith(prompt_text):
        text = whole_text[len(prompt_text) :]
        end = text.rfind(tokenizer.eos_token)
        text = text[:end] if end >= 0 else text
    return Example(prompt_ids, [*_tokenize(text, tokenizer), tokenizer.eos_token_id])


def encode_prompt(messages: Conversation, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Encode a conversation that the assistant is to continue, exactly as in training.

    Raises:
        UserError: There is no user turn, or the tokenizer has no chat template.
    """
    if not any(message["role"] == "user" and message["content"].strip() for message in messages):
        raise UserError("the prompt is empty; give a user turn with some text")
    return _tokenize(_render(messages, tokenizer, add_generation_prompt=True), tokenizer)


def _begin_of_sequence(tokenizer: PreTrainedTokenizerBase) -> str:
    """Jinja for the begin-of-sequence token where this tokenizer starts plain text with one."""
    added = tokenizer("")["input_ids"]
    return "{{ bos_token }}" if len(added) > 0 and added[0] == tokenizer.bos_token_id else ""


def _tokenize(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokenise without adding anything: chat templates write their own special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _render(messages: Conversation, tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool) -> str:
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; see with_template")
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        roles = " → ".join(message["role"] for message in messages)
        raise UserError(
            f"the chat template refuses the turns {roles}: {error}; change the turns or use template='plain'"
        ) from error
    return text
