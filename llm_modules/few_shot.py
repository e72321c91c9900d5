"""The frozen source alone, with worked examples in its context: what a pair on it is compared with."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from llm_modules.data.templates import encode_prompt
from llm_modules.evaluation import Evaluation, judge
from llm_modules.prefix import common_prefix
from llm_modules.processes import gathered, num_processes, process_index
from llm_modules.source import Source
from llm_modules.tasks import Problem, Task
from llm_modules.writing import Writing, in_turn, write


def few_shot(
    source: Source, task: Task, problems: Sequence[Problem], *, num_examples: int, seed: int, max_new_tokens: int
) -> Evaluation:
    """Judge the source; what the prompts of a kind share is read once.

    Args:
        source: With its tokenizer, whose chat template is used.
        task: Whose demonstrations it is shown.
        problems: What it is asked.
        num_examples: Demonstrations before each problem.
        seed: Of the demonstrations.
        max_new_tokens: Most tokens of an answer.
    """
    prompts = [task.few_shot_prompt(problem, num_examples, seed=seed) for problem in problems]
    kinds = [problem.kind for problem in problems]
    own = slice(process_index(), None, num_processes())
    written = write_prompted(source, prompts[own], kinds=kinds[own], max_new_tokens=max_new_tokens)
    return judge(task, problems, in_turn(gathered(written)))


def write_prompted(
    source: Source,
    prompts: Sequence[list[dict[str, str]] | str],
    *,
    kinds: Sequence[str],
    max_new_tokens: int,
) -> Writing:
    """Let the source answer prompts of its own form; what those of a kind begin with is read once.

    Args:
        source: With its tokenizer.
        prompts: Texts to go on with, or conversations for the chat template.
        kinds: Of each prompt; those of a kind are alike.
        max_new_tokens: Most tokens of an answer.
    """
    texts = [""] * len(prompts)
    num_tokens, seconds = 0, 0.0
    for kind in dict.fromkeys(kinds):
        chosen = [index for index, one in enumerate(kinds) if one == kind]
        whole = [encode_either(prompts[index], source.tokenizer) for index in chosen]
        shared = common_prefix(whole)
        written = write(
            source.model,
            [prompt[shared:] for prompt in whole],
            source.tokenizer,
            max_new_tokens=max_new_tokens,
            prefix=whole[0][:shared],
            stop_ids=_line_end(source.tokenizer) if isinstance(prompts[chosen[0]], str) else (),
            label=f"source, {kind} examples in context",
        )
        for index, text in zip(chosen, written.texts, strict=True):
            texts[index] = text
        num_tokens, seconds = num_tokens + written.num_tokens, seconds + written.seconds
    return Writing(texts, num_tokens, seconds)


def _line_end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that ends a line: what follows it in a list of examples is the next one."""
    found: list[int] = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return found[-1:]


def encode_either(prompt: list[dict[str, str]] | str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A text as it stands, a conversation in the tokenizer's chat template."""
    if isinstance(prompt, str):
        ids: list[int] = tokenizer(prompt)["input_ids"]
        return ids
    return encode_prompt(prompt, tokenizer)
