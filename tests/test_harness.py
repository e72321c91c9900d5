"""lm-eval meets any of our models as it meets its own, offline, and the source sees no response where it must not."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from llm_modules.harness import HarnessModel, harness_task
from llm_modules.tasks import get_task
from tests.conftest import randomise_, tiny_pair, tiny_source_config, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # of lm-eval and what it imports

REQUESTS = [("1 + 2 ?", " = 3"), ("a", " b c d e"), ("", " a b"), ("System : a . User : b", " x")]


def instances(kind, arguments):
    return [Instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]


@pytest.fixture(params=["prompt", "causal", "generator alone"])
def model(request):
    torch.manual_seed(3)
    if request.param == "generator alone":
        found = AutoModelForCausalLM.from_config(tiny_source_config()).eval()
        found.generation_config.eos_token_id = 2
        return found
    generator = tiny_source_config(hidden_size=12, num_hidden_layers=1, bos_token_id=None)
    return randomise_(tiny_pair(generator=generator, visibility=request.param))


def test_log_likelihood_is_the_loss_of_the_response(model):
    tokenizer = tiny_tokenizer()
    found = HarnessModel(model, tokenizer, batch_size=3).loglikelihood(instances("loglikelihood", REQUESTS))
    for (context, rest), (nats, _) in zip(REQUESTS, found, strict=True):
        prompt = tokenizer(context, add_special_tokens=False)["input_ids"] or [2]
        response = tokenizer(rest, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([prompt + response])
        labels = torch.tensor([[-100] * len(prompt) + response])
        loss = model(input_ids=ids, labels=labels).loss
        assert nats == pytest.approx(-float(loss) * len(response), abs=1e-3)


def test_greedy_answers_are_known_as_such(model):
    tokenizer = tiny_tokenizer()
    prompt = tokenizer("1 + 2 ?", add_special_tokens=False)["input_ids"]
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=4, do_sample=False, eos_token_id=None)
    answer = ids[0, len(prompt) :].tolist()
    changed = [*answer[:-1], 5 if answer[-1] != 5 else 6]
    harness = HarnessModel(model, tokenizer)
    found = harness._loglikelihood_tokens([(("", ""), prompt, answer), (("", ""), prompt, changed)])
    assert [greedy for _, greedy in found] == [True, False] and found[0][0] > found[1][0]


def test_answers_stop_before_the_first_end(model):
    harness = HarnessModel(model, tiny_tokenizer(), batch_size=2)
    whole = harness.generate_until(instances("generate_until", [("1 + 2 ?", {"max_gen_toks": 9})]))[0]
    end = whole.split()[1]
    (cut,) = harness.generate_until(instances("generate_until", [("1 + 2 ?", {"until": [end], "max_gen_toks": 9})]))
    assert cut == whole[: whole.find(end)]


def test_rolling_likelihood_is_that_of_the_whole_text(model):
    harness = HarnessModel(model, tiny_tokenizer())
    (rolled,) = harness.loglikelihood_rolling(instances("loglikelihood_rolling", [("a b c d",)]))
    ((whole, _),) = harness.loglikelihood(instances("loglikelihood", [("", "a b c d")]))
    assert rolled == pytest.approx(whole, abs=1e-4)


def test_a_task_on_the_disk_is_evaluated_offline(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"{a} + 1 ?", "choices": ["a", "b", "c"], "gold": a % 3} for a in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "local.yaml").write_text(
        "task: local_choice\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: question\n"
        "doc_to_choice: choices\ndoc_to_target: gold\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    found = lm_eval.simple_evaluate(
        HarnessModel(model, tiny_tokenizer()),
        tasks=["local_choice"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    assert 0 <= found["results"]["local_choice"]["acc,none"] <= 1
    assert found["n-samples"]["local_choice"]["effective"] == 5


def test_our_tasks_are_judged_by_our_verifiers_in_the_chat_template(model):
    task = get_task("arithmetic")
    problems = task.test(7, seed=0)
    found = lm_eval.simple_evaluate(
        HarnessModel(model, tiny_tokenizer()),
        tasks=[harness_task(task, problems, max_new_tokens=3)],
        task_manager=TaskManager(include_defaults=False),
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    asked = found["samples"]["llm-modules-arithmetic"]
    assert len(asked) == 7
    assert all(sample["arguments"][0][0].endswith("Assistant : ") for sample in asked)
    verdicts = [task.verify(problems[sample["doc"]["place"]], sample["resps"][0][0]) for sample in asked]
    figures = found["results"]["llm-modules-arithmetic"]
    assert figures["exact_match,none"] == pytest.approx(sum(verdict.correct for verdict in verdicts) / 7)
    assert figures["form,none"] == sum(verdict.form for verdict in verdicts) == 0
