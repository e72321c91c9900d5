"""The frozen source alone: asked bare, with examples, or in whichever form suits it best."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm

from llm_modules.compare.budget import Budget, Cost
from llm_modules.compare.competitor import Competitor, Fit, Losses
from llm_modules.compare.problems import Problems, question_prompt
from llm_modules.data.templates import encode
from llm_modules.evaluation import judge
from llm_modules.features import Reading, batches
from llm_modules.few_shot import encode_either, write_prompted
from llm_modules.loss import cross_entropy
from llm_modules.machine import best_device
from llm_modules.prefix import common_prefix
from llm_modules.tasks import Problem
from llm_modules.training import load_source
from llm_modules.writing import Writing

NUM_SHOTS = 3  # where the task does not say how many suit
NUM_TRIED = 12  # training problems on which a prompt form is chosen
STEP_BY_STEP = "Think step by step, then state the final answer."
FORMS = {
    "the bare question": (0, ""),
    "step by step": (0, STEP_BY_STEP),
    "1 example": (1, ""),
    "3 examples": (3, ""),
    "8 examples": (8, ""),
}
"""Examples before the question, and what is said after it."""


class Prompted(Competitor):
    """The source under one prompt form.

    Args:
        problems: Of the comparison.
        form: One of `FORMS`, or `None`: chosen by `fit` on training problems kept apart.
    """

    def __init__(self, problems: Problems, form: tuple[int, str] | None):
        self.problems, self.form = problems, form
        self.source = load_source(problems.plan.settings.model).to(best_device())

    @classmethod
    def few_shot(cls, problems: Problems) -> "Prompted":
        """With as many examples as the task says suit."""
        return cls(problems, (problems.task.num_shots or NUM_SHOTS, ""))

    def fit(self, budget: Budget, *, rates: Sequence[float], seed: int) -> Fit:
        """Choose the form; nothing trains."""
        if self.form is not None:
            return Fit()
        tried, trials, seconds = self.problems.apart(NUM_TRIED), {}, 0.0
        for name, form in FORMS.items():
            self.form = form
            written = self.answers(tried, max_new_tokens=self.problems.plan.max_new_tokens)
            trials[name] = judge(self.problems.shots, tried, written).exact.value
            seconds += written.seconds
        best = max(trials, key=trials.__getitem__)  # of equals the first, which is the shortest
        self.form = FORMS[best]
        return Fit(tuning=Cost(seconds), trials=trials, chosen=best)

    def prompt(self, problem: Problem) -> list[dict[str, str]] | str:
        """What the source is given."""
        num_shots, said_after = self.form or (0, "")
        if not num_shots:
            return [{"role": "user", "content": f"{problem.question}\n{said_after}".strip()}]
        if problem.response:
            return self.problems.shots.few_shot_prompt(problem, num_shots, seed=self.problems.plan.settings.data.seed)
        test = self.problems.test
        like = next((other for other in test if other.kind == problem.kind), test[0])
        return question_prompt(self.prompt(like), problem.question)

    @torch.no_grad()
    def losses(self, problems: Sequence[Problem]) -> Losses:
        """Of the very tokens that all rows are judged on, after this form's prompt."""
        nats = [0.0] * len(problems)
        responses = [encode(problem.messages(), self.problems.tokenizer).response_ids for problem in problems]
        last = self.source.config.get_text_config().num_hidden_layers
        kinds = list(dict.fromkeys(problem.kind for problem in problems))
        for kind in tqdm(kinds, desc="loss of the right answers", unit=" kinds"):
            chosen = [index for index, problem in enumerate(problems) if problem.kind == kind]
            prompts = [encode_either(self.prompt(problems[index]), self.source.tokenizer) for index in chosen]
            texts = {
                (*prompt, *responses[index]): (index, len(prompt))
                for index, prompt in zip(chosen, prompts, strict=True)
            }
            shared = common_prefix(prompts)
            reading = Reading(self.source, taps=[last], prefix=tuple(prompts[0][:shared]))
            for batch in batches(sorted(texts, key=len)):
                for text, states in zip(batch, reading(batch), strict=True):
                    index, start = texts[text]
                    predicting = states[start - shared - 1 : -1, 0].to(self.source.device)
                    targets = torch.tensor(responses[index], device=self.source.device)
                    nats[index] = float(cross_entropy(self.source.readout(predicting), targets, num_items=1))
        return Losses(nats, [len(ids) for ids in responses], [len(p.response.encode()) for p in problems])

    def answers(self, problems: Sequence[Problem], *, max_new_tokens: int) -> Writing:
        """Greedy, in the source's own chat form."""
        prompts = [self.prompt(problem) for problem in problems]
        kinds = [problem.kind for problem in problems]
        return write_prompted(self.source, prompts, kinds=kinds, max_new_tokens=max_new_tokens)

    def parameters(self) -> tuple[int, int]:
        """Nothing trains; the source is resident."""
        return 0, 0 if self.source.model is None else self.source.model.num_parameters()

    def save(self, folder: Path) -> None:
        """Nothing was trained."""
