"""Any task of reasoning-gym, by name: problems drawn from its generator, judged by its own scorer."""

import random
import re
import zlib
from itertools import count
from typing import Any

import reasoning_gym
from reasoning_gym.factory import DATASETS

from llm_modules.errors import UserError
from llm_modules.tasks.base import Problem, Verdict

NUM_TRAIN, NUM_TEST = 2000, 200
TEST_SHARE = 5  # one problem in so many is held out
MAX_STALE_CHUNKS = 5  # of problems that were all there before: the generator has no more

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class ReasoningGym:
    """A generator of reasoning-gym in its default configuration.

    A problem is held out by a hash of its question, whatever the seed: so no test problem is ever trained on, even
    where a generator knows few.

    Args:
        dataset: Its name in reasoning-gym, such as `chain_sum`.

    Raises:
        UserError: There is none of this name.
    """

    num_shots: int | None = None

    def __init__(self, dataset: str):
        if dataset not in DATASETS:
            raise UserError(
                f"reasoning-gym has no task {dataset!r}; it has {len(DATASETS)}: {', '.join(sorted(DATASETS))}"
            )
        self.dataset = dataset
        self.name = f"reasoning-gym:{dataset}"
        self.kinds = (dataset,)
        self._asked: dict[str, dict[str, Any]] = {}  # by question: the scorer wants what the generator knows
        self._scorer = self._draw_chunk(2, "scorer")

    def train(self, num_examples: int | None = None, *, seed: int) -> list[Problem]:
        """Different problems that are not held out."""
        problems = self._problems(num_examples or NUM_TRAIN, held_out=False, seed=seed)
        if not all(problem.response for problem in problems):
            raise UserError(f"{self.name} gives no reference answers to train on; choose another task")
        return problems

    def test(self, num_examples: int | None = None, *, seed: int) -> list[Problem]:
        """Different held-out problems."""
        return self._problems(num_examples or NUM_TEST, held_out=True, seed=seed)

    def few_shot_prompt(self, problem: Problem, num_examples: int, *, seed: int) -> list[dict[str, str]] | str:
        """Training problems as earlier turns."""
        shots = self.train(num_examples, seed=seed)
        return [turn for shot in shots for turn in shot.messages()] + problem.messages()[:1]

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Full marks of the scorer or none: in part it also pays for an answer that merely occurs in the text.

        The answer is what stands between the last `<answer>` tags, or else the whole text, which then has to be bare.
        """
        tagged = _TAGGED.findall(text)
        answer = (tagged[-1] if tagged else text).strip()
        # Exactly 1: summed up letter by letter, marks for a longer text than the answer can exceed it.
        try:
            score = float(self._scorer.score_answer(answer=answer, entry=self._asked[problem.question]))
        except Exception:  # noqa: BLE001 - scorers read any text with any code, and one text must not end an evaluation
            score = 0.0
        return Verdict(correct=score == 1.0, form=bool(answer))

    def _problems(self, num_examples: int, *, held_out: bool, seed: int) -> list[Problem]:
        problems: dict[str, Problem] = {}
        stale = 0
        for chunk in count():
            before = len(problems)
            for entry in self._draw_chunk(max(64, num_examples), f"{held_out} {seed} {chunk}"):
                question = entry["question"]
                if (zlib.crc32(question.encode()) % TEST_SHARE == 0) == held_out and question not in problems:
                    answer = "" if entry["answer"] is None else str(entry["answer"])
                    self._asked[question] = entry
                    problems[question] = Problem(self.name, self.dataset, question, answer, answer)
                if len(problems) == num_examples:
                    return list(problems.values())
            stale = stale + 1 if len(problems) == before else 0
            if stale == MAX_STALE_CHUNKS:
                break
        raise UserError(f"{self.name} has no {num_examples} different problems, but {len(problems)}; ask for fewer")

    def _draw_chunk(self, size: int, purpose: str) -> Any:
        """A generator's data set. It counts its seed up by one a problem, so chunks start far apart."""
        seed = random.Random(f"{self.dataset} {purpose}").randrange(2**31)
        return reasoning_gym.create_dataset(self.dataset, seed=seed, size=size)
