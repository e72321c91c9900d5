"""Who competes under which name."""

import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from llm_modules.baselines import GeneratorAlone
from llm_modules.checksums import verify
from llm_modules.compare.adapters import AdaptedSource, Method
from llm_modules.compare.competitor import Competitor
from llm_modules.compare.distillation import Distilled
from llm_modules.compare.problems import Problems
from llm_modules.compare.prompted import FORMS, Prompted
from llm_modules.compare.sizes import of_size
from llm_modules.compare.trained import Trained
from llm_modules.data.templates import with_template
from llm_modules.errors import UserError
from llm_modules.generator import load_generator
from llm_modules.loading import load_causal_lm
from llm_modules.machine import best_device
from llm_modules.modeling import CombinedModel
from llm_modules.shapes import choices_of, skeleton
from llm_modules.source import Source
from llm_modules.training import load_source

SHARE_OF_LEAKY = 10  # the published wiring decodes without a cache: it answers one test problem in so many,
LEAST_OF_LEAKY = 4  # and no fewer than these
BYTES_TO_TRAIN = 16  # of each parameter: weight, gradient, two moments


def competitor(name: str, problems: Problems, *, models: Path, seed: int) -> Competitor:
    """The competitor of a row.

    Args:
        name: Of the row.
        problems: Of the comparison.
        models: Folder where those that are finished have left their models.
        seed: Of the training run.

    Raises:
        UserError: If it cannot be had here.
    """
    made: dict[str, Callable[[], Competitor]] = {
        "pair": lambda: _pair(problems),
        "pair-prompt": lambda: _pair(problems, visibility="prompt"),
        "pair-causal": lambda: _pair(problems, visibility="causal"),
        "pair-bidirectional": lambda: _pair(problems, visibility="bidirectional"),
        "bridge-linear": lambda: _pair(problems, num_bridge_layers=0),
        "generator": lambda: _generator(problems),
        "generator-matched": lambda: _generator(problems, matched=True),
        "generator-pretrained": lambda: _pretrained(problems),
        "distilled": lambda: _distilled(problems, teacher=_source(problems)),
        "distilled-lora": lambda: _distilled(problems, teacher=_with_lora(problems, models / f"lora-{seed}")),
        "lora": lambda: _adapted(problems, "lora"),
        "shadow": lambda: _adapted(problems, "shadow"),
        "full": lambda: _adapted(problems, "full"),
        "source-zero-shot": lambda: Prompted(problems, FORMS["the bare question"]),
        "source-few-shot": lambda: Prompted.few_shot(problems),
        "source-best-prompt": lambda: Prompted(problems, None),
    }
    return made[name]()


def _source(problems: Problems) -> Source:
    return load_source(problems.plan.settings.model).to(best_device())


def _pair(problems: Problems, **changes: Any) -> Trained:
    """The configuration's pair, some choices changed; what no longer goes with them is left to its default."""
    settings, source = problems.plan.settings.model, _source(problems)
    choices = choices_of(settings) | changes
    if choices["visibility"] != settings.visibility:
        choices["start"] = None
    if choices["visibility"] != "prompt":
        choices["generator_window"] = None
    leaks = choices["visibility"] == "bidirectional"

    def build() -> CombinedModel:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="visibility='bidirectional'")  # the report says so
            return CombinedModel.from_modules(source, settings.generator, **choices)

    return Trained(
        problems,
        build,
        resident=lambda model: model.num_parameters() + _num(model.source.model),
        num_asked=max(LEAST_OF_LEAKY, problems.plan.num // SHARE_OF_LEAKY) if leaks else None,
    )


def _generator(problems: Problems, *, matched: bool = False) -> Trained:
    """The pair's generator without a source, or another as large as the pair."""
    return Trained(problems, _generator_builder(problems, matched=matched), resident=lambda m: m.num_parameters())


def _generator_builder(problems: Problems, *, matched: bool = False) -> Callable[[], GeneratorAlone]:
    settings, tokenizer = problems.plan.settings.model, problems.tokenizer
    config, _ = load_generator(settings.generator)
    if matched:
        wanted = skeleton(settings, report=lambda _: None).model.num_parameters()
        config = of_size(config, vocab_size=problems.vocab_size, num_parameters=wanted)
    special = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return partial(GeneratorAlone.from_config, config, vocab_size=problems.vocab_size, generation_config=special)


def _pretrained(problems: Problems) -> Trained:
    """The generator's own weights and tokenizer, without a source."""
    name = str(problems.plan.settings.model.generator)
    model, tokenizer = load_causal_lm(name)
    return Trained(
        problems,
        lambda: GeneratorAlone(load_causal_lm(name)[0]),
        resident=lambda m: m.num_parameters(),
        tokenizer=with_template(tokenizer, problems.plan.settings.data.template),
        vocab_size=model.config.vocab_size,
    )


def _distilled(problems: Problems, *, teacher: Source) -> Trained:
    """A generator alone with a teacher, who is not needed to answer."""
    build = _generator_builder(problems)
    return Trained(problems, lambda: Distilled(build().model, teacher), resident=lambda m: m.num_parameters())


def _with_lora(problems: Problems, folder: Path) -> Source:
    """The source with the LoRA that an earlier row trained."""
    if not folder.is_dir():
        raise UserError("its teacher, the row lora, left no model to learn from")
    from peft import PeftModel

    verify(folder)
    found = PeftModel.from_pretrained(_whole(_source(problems)), folder).merge_and_unload()
    return Source.of(found)


def _adapted(problems: Problems, method: Method) -> Trained:
    """Adapters on the source, or all of it."""
    if method == "full":
        _refuse_what_does_not_fit(problems)
    return Trained(
        problems,
        lambda: AdaptedSource(method, _whole(_source(problems))),
        resident=lambda model: model.num_parameters(only_trainable=False),
    )


def _refuse_what_does_not_fit(problems: Problems) -> None:
    """Full training needs weights, gradients and two moments at once, and more for what it computes."""
    source = skeleton(problems.plan.settings.model, report=lambda _: None).source
    needed = BYTES_TO_TRAIN * _num(source)
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    if needed > free:
        raise UserError(f"training all of the source takes over {needed / 1e9:.1f} GB and {free / 1e9:.1f} are free")


def _whole(source: Source) -> PreTrainedModel:
    assert source.model is not None  # noqa: S101 - loaded whole
    return source.model


def _num(model: PreTrainedModel | None) -> int:
    return 0 if model is None else model.num_parameters()
