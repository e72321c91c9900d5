"""Give any of our models to lm-eval, whose tasks may lie on the disk, and our tasks too. Needs the extra `lm-eval`.

A language model of lm-eval sees one row of tokens; ours must know where the prompt ends, because with `prompt`
visibility the source reads up to there and no further. So a context is the prompt here, and what follows the response.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from llm_modules.baselines import GeneratorAlone
from llm_modules.data.dataset import check_ids, padding_id
from llm_modules.tasks import Problem, Task
from llm_modules.writing import write

DEFAULT_NEW_TOKENS = 256  # where a task of lm-eval names no limit


class HarnessModel(TemplateLM):
    """A pair, or any causal language model of transformers, for `lm_eval.simple_evaluate(HarnessModel(…), tasks=[…])`.

    Args:
        model: In eval mode.
        tokenizer: With the chat template the model was trained in, for `apply_chat_template=True`.
        batch_size: Rows computed at once.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 16):
        super().__init__()
        # A generator trained alone is loaded as a plain model of transformers; wrapped it takes the pair's calls.
        self.model = model if hasattr(model, "check_room") else GeneratorAlone(model).eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    @property
    def eot_token_id(self) -> int:
        """What ends a text; it also stands where a context is empty."""
        token: int = self.tokenizer.eos_token_id
        return token

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's own caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text; the chat template writes what special tokens there are."""
        ids: list[int] = self.tokenizer(string, add_special_tokens=bool(add_special_tokens), verbose=False)["input_ids"]
        return ids

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The one template that the model was trained in, where a run asks for one."""
        return self.tokenizer.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts in nats, each as a response to the end-of-text token."""
        rows = [(("", text), [self.eot_token_id], self.tok_encode(text)) for (text,) in _arguments(requests)]
        return [nats for nats, _ in self._loglikelihood_tokens(rows, disable_tqdm=disable_tqdm)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, cut off before the first of the strings that end them."""
        texts = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for index, (_, settings) in enumerate(_arguments(requests)):
            groups.setdefault(repr(sorted(settings.items(), key=str)), []).append(index)
        for indices in groups.values():
            settings = dict(requests[indices[0]].args[1])
            until = settings.pop("until", None) or []
            limit = settings.pop("max_gen_toks", None) or settings.pop("max_new_tokens", None) or DEFAULT_NEW_TOKENS
            prompts = [self.tok_encode(requests[index].args[0]) or [self.eot_token_id] for index in indices]
            written = write(
                self.model,
                prompts,
                self.tokenizer,
                max_new_tokens=limit,
                batch_size=self.batch_size,
                label="lm-eval",
                **_sampling(settings),
            )
            for index, text in zip(indices, written.texts, strict=True):
                texts[index] = _cut(text, [until] if isinstance(until, str) else until)
        return texts

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokenised apart, as in training; lm-eval would move the white space that ends a prompt into the response."""
        return self.tok_encode(context), self.tok_encode(continuation)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Of each continuation: its log-likelihood in nats, and whether it is what greedy decoding would write."""
        results: list[tuple[float, bool]] = [(math.nan, False)] * len(requests)
        order = sorted(range(len(requests)), key=lambda index: len(requests[index][1]) + len(requests[index][2]))
        with tqdm(total=len(order), desc="lm-eval", unit=" texts", disable=disable_tqdm) as progress:
            for first in range(0, len(order), self.batch_size):
                chosen = order[first : first + self.batch_size]
                pairs = [requests[index][1:] for index in chosen]
                for index, result in zip(chosen, self._likelihoods(pairs), strict=True):
                    results[index] = result
                progress.update(len(chosen))
        return results

    @torch.no_grad()
    def _likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Iterator[tuple[float, bool]]:
        vocab_size = self.model.config.vocab_size
        width = max(len(context) + len(rest) for context, rest in pairs)
        ids = torch.full((len(pairs), width), padding_id(self.tokenizer, vocab_size=vocab_size))
        attention_mask = torch.zeros_like(ids)
        prompt_mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, (context, rest) in enumerate(pairs):
            check_ids([*context, *rest], self.tokenizer, vocab_size=vocab_size)
            self.model.check_room(len(context), len(rest))
            ids[row, : len(context) + len(rest)] = torch.tensor([*context, *rest])
            attention_mask[row, : len(context) + len(rest)] = 1
            prompt_mask[row, : len(context)] = True
        device = self.model.device
        logits: Tensor = self.model(
            input_ids=ids.to(device), attention_mask=attention_mask.to(device), prompt_mask=prompt_mask.to(device)
        ).logits
        for row, (context, rest) in enumerate(pairs):
            rows = logits[row, len(context) - 1 : len(context) + len(rest) - 1].float()  # `[len(rest), V]`
            targets = torch.tensor(rest, device=rows.device)
            said = rows.log_softmax(-1).gather(-1, targets[:, None]).sum()
            yield float(said), bool((rows.argmax(-1) == targets).all())


def harness_task(task: Task, problems: Sequence[Problem], *, max_new_tokens: int) -> dict[str, Any]:
    """One of our tasks as lm-eval takes it in `tasks=[…]`; judged by our verifier as `exact_match` and `form`.

    Args:
        task: Whose verifier judges.
        problems: What is asked.
        max_new_tokens: Most tokens of an answer.
    """
    asked = list(problems)
    rows = Dataset.from_list(
        [{"place": place, "question": one.question, "answer": one.answer} for place, one in enumerate(asked)]
    )

    def judged(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        verdict = task.verify(asked[doc["place"]], results[0])
        return {"exact_match": float(verdict.correct), "form": float(verdict.form)}

    mean = {"aggregation": "mean", "higher_is_better": True}
    return {
        "task": f"llm-modules-{task.name.replace(':', '-')}",
        "custom_dataset": lambda **_: {"test": rows},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "process_results": judged,
        "metric_list": [{"metric": "exact_match", **mean}, {"metric": "form", **mean}],
        "generation_kwargs": {"until": [], "max_gen_toks": max_new_tokens, "do_sample": False},
    }


def _arguments(requests: Sequence[Instance]) -> list[tuple]:
    return [request.args for request in requests]


def _sampling(settings: dict[str, Any]) -> dict[str, Any]:
    """For `generate`; greedy unless the task says otherwise."""
    if not settings.get("do_sample"):
        return {}
    return {name: value for name, value in settings.items() if name in ("do_sample", "temperature", "top_k", "top_p")}


def _cut(text: str, ends: Sequence[str]) -> str:
    return text[: min((place for end in ends if end and (place := text.find(end)) >= 0), default=len(text))]
