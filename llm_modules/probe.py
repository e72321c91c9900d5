"""`llm-modules probe`: what a trained pair lives by, measured by taking it away."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from llm_modules.bootstrap import Estimate, bootstrap
from llm_modules.checksums import write_json
from llm_modules.controls import AS_TRAINED, SWAPPED, Control, all_controls, lend
from llm_modules.data.dataset import check_ids
from llm_modules.data.records import Conversation, read_conversations
from llm_modules.data.templates import Example, encode
from llm_modules.errors import UserError
from llm_modules.evaluation import Score, evaluate, judge
from llm_modules.features import Reading, Text, batches, distinct_texts, inputs_of, read_text
from llm_modules.inspection import check_example, inspect_answer, load_pair, make_folder, spell, write_pictures
from llm_modules.leak import leak_test
from llm_modules.loss import IGNORED
from llm_modules.modeling import CombinedModel
from llm_modules.probe_report import summary, write_report
from llm_modules.tasks import Problem, Task, get_task
from llm_modules.watching import Watched, tap_weights, watch

NUM_WATCHED = 64  # examples whose gates and attention are averaged
NUM_TOKENS = 12  # tokens named that are read most


@dataclass(frozen=True)
class Questions:
    """What a pair is probed with; in every list the same order.

    Args:
        name: Of the task, or of the file.
        texts: What is asked, to be shown.
        examples: Prompts and the responses that are wanted.
        task: Whose verifier judges answers; `None` where there is none.
        problems: The task's.
    """

    name: str
    texts: Sequence[str]
    examples: Sequence[Example]
    task: Task | None = None
    problems: Sequence[Problem] = ()


def probe(
    folder: Path, *, task: str | None, data: str | None, num: int, seed: int, max_new_tokens: int, output: Path
) -> dict:
    """Measure a trained pair as it is and under each control; print, and write figures, report and pictures.

    The figures are written after each part, so that what was measured is not lost with what was not.

    Args:
        folder: Of a trained pair.
        task: Built-in task, whose held-out problems are asked.
        data: Or a file, folder or data set of held-out conversations; the last turn of each is the answer.
        num: How many questions.
        seed: Of the questions, of noise and random weights, and of the intervals.
        max_new_tokens: Most tokens of an answer, where answers are judged.
        output: Folder for `probe.json`, `probe.md`, `probe.html` and the pictures.

    Raises:
        UserError: If there is nothing to ask, or the model is no pair.
    """
    if (task is None) == (data is None):
        raise UserError("give --task or --data, and not both: one says what is asked")
    chosen = None if task is None else get_task(task)
    conversations = [] if data is None else read_conversations(data)
    model, tokenizer = load_pair(folder)
    make_folder(output)
    if chosen is None:
        asked = _from_records(model, conversations, tokenizer, name=str(data), num=num, seed=seed)
    else:
        asked = _from_task(model, chosen, tokenizer, num=num, seed=seed)
    results: dict = {
        "model": str(folder),
        "asked": asked.name,
        "n": len(asked.examples),
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "visibility": model.config.visibility,
    }
    controls = all_controls(model, asked.examples, seed=seed)
    results |= measure(controls, asked, tokenizer, seed=seed)
    _save(results, output)
    if asked.task is not None:
        for control, row in zip(controls, results["controls"], strict=True):
            with control.applied() as view:
                found = evaluate(
                    view, asked.task, asked.problems, tokenizer, max_new_tokens=max_new_tokens, label=control.name
                )
            row["exact_match"] = _as_dict(found.exact)
            if control.name == SWAPPED:
                others = _lenders(asked, seed=seed)
                results["answers_to_other"] = _as_dict(judge(asked.task, others, found.writing).exact)
            _save(results, output)
    one = inspect_answer(model, asked.examples[0], tokenizer, question=asked.texts[0])
    write_pictures(one, output)
    results["pictured"] = {"question": asked.texts[0], "answer": "".join(one.written)}
    _save(results, output)
    page = write_report(results, output)
    print("\n" + summary(results))
    print(f"\nreport:  {page}\nfigures: {output / 'probe.json'}")
    return results


def measure(controls: Sequence[Control], asked: Questions, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> dict:
    """Losses under each control, leak test, gates, taps and tokens read: all that needs no answers written."""
    model = controls[0].model
    losses = response_losses(controls, asked.examples)
    num_tokens = [len(example.response_ids) for example in asked.examples]
    rows = []
    for control in controls:
        summed = losses[control.name]
        more = [loss - base for loss, base in zip(summed, losses[AS_TRAINED], strict=True)]
        rows.append(
            {
                "name": control.name,
                "meaning": control.meaning,
                "loss_nats": bootstrap(summed, num_tokens, seed=seed).as_dict(),
                "more_nats": bootstrap(more, num_tokens, seed=seed).as_dict(),
            }
        )
    watched = [watch(model, example) for example in tqdm(asked.examples[:NUM_WATCHED], desc="gates and attention")]
    return {
        "controls": rows,
        "leak": leak_test(model, asked.examples, seed=seed).as_dict(),
        "gates": [estimate.as_dict() for estimate in gates_open(watched, seed=seed)],
        "taps": dict(zip(map(str, model.config.taps), tap_weights(model), strict=True)),
        "tokens": _tokens_read(watched, asked.examples, tokenizer, seed=seed),
    }


@torch.no_grad()
def response_losses(controls: Sequence[Control], examples: Sequence[Example]) -> dict[str, list[float]]:
    """Loss in nats, summed over each example's response, under each control; the response is given, not written.

    A source that several controls share reads each text once for all of them.
    """
    config = controls[0].model.config
    places: dict[Text, list[int]] = {}
    for index, example in enumerate(examples):
        places.setdefault(read_text(example, config.visibility), []).append(index)
    losses = {control.name: [0.0] * len(examples) for control in controls}
    with tqdm(total=len(examples) * len(controls), desc="losses under controls", unit=" answers") as progress:
        for batch in batches(distinct_texts(examples, visibility=config.visibility)):
            read: dict[int, list[torch.Tensor]] = {}
            for control in controls:
                with control.applied() as model:
                    key = id(model.source)
                    if key not in read:
                        read[key] = Reading(model.source, taps=config.taps)(batch)
                    for text, states in zip(batch, read[key], strict=True):
                        for index in places[text]:
                            known = replace(examples[index], knowledge=states)
                            losses[control.name][index] = _response_loss(model, known)
                            progress.update()
    return losses


def _response_loss(model: CombinedModel, example: Example) -> float:
    inputs = inputs_of(model, example)
    labels = inputs["input_ids"].masked_fill(inputs["prompt_mask"], IGNORED)
    return model(**inputs, labels=labels).loss.item() * len(example.response_ids)


def gates_open(watched: Sequence[Watched], *, seed: int) -> list[Estimate]:
    """How far each layer's gate is open while a token is written, the mean over tokens of all responses."""
    sizes = [one.gates.shape[1] for one in watched]
    return [
        bootstrap([one.gates[layer].sum().item() for one in watched], sizes, seed=seed)
        for layer in range(len(watched[0].gates))
    ]


def _tokens_read(
    watched: Sequence[Watched], examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> list[dict]:
    """The tokens with the largest shares of all attention, wherever and however often they stand."""
    shares: dict[int, list[float]] = {}
    for number, (one, example) in enumerate(zip(watched, examples, strict=False)):
        for token, weight in zip(example.input_ids, one.attention.mean((0, 1)).tolist(), strict=False):
            shares.setdefault(token, [0.0] * len(watched))[number] += weight
    most = sorted(shares, key=lambda token: -sum(shares[token]))[:NUM_TOKENS]
    return [
        {"token": name, "share": bootstrap(shares[token], seed=seed).as_dict()}
        for token, name in zip(most, spell(most, tokenizer), strict=True)
    ]


def _lenders(asked: Questions, *, seed: int) -> list[Problem]:
    """The problem whose states stood in place of each problem’s own."""
    lent = lend(asked.examples, seed=seed)
    return [asked.problems[lent[tuple(example.prompt_ids)]] for example in asked.examples]


def _as_dict(score: Score) -> dict:
    return {"value": score.value, "interval": list(score.interval), "hits": score.hits, "n": score.n}


def _from_task(
    model: CombinedModel, task: Task, tokenizer: PreTrainedTokenizerBase, *, num: int, seed: int
) -> Questions:
    problems = task.test(num, seed=seed)
    examples = [encode(problem.messages(), tokenizer) for problem in problems]
    for example in examples:
        check_example(model, example, tokenizer)
    return Questions(task.name, [problem.question for problem in problems], examples, task, problems)


def _from_records(
    model: CombinedModel,
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    num: int,
    seed: int,
) -> Questions:
    """So many conversations, drawn by seed among those that the pair has room for."""
    texts, examples, too_long = [], [], []
    for conversation in Random(seed).sample(conversations, len(conversations)):
        last = max(index for index, turn in enumerate(conversation) if turn["role"] == "assistant")
        example = encode(conversation[: last + 1], tokenizer)
        check_ids(example.input_ids, tokenizer, vocab_size=model.config.vocab_size)
        try:
            model.check_room(len(example.prompt_ids), len(example.response_ids))
        except UserError as error:
            too_long.append(error)
            continue
        texts.append(conversation[last - 1]["content"])
        examples.append(example)
        if len(examples) == num:
            break
    if too_long:
        print(f"left out {len(too_long)} that are too long for the pair; the first: {too_long[0]}")
    if len(examples) < 2:
        raise UserError(f"{name} holds {len(examples)} conversations to ask; intervals need at least 2: give more")
    return Questions(name, texts, examples)


def _save(results: dict, output: Path) -> None:
    write_json(output / "probe.json", results)
