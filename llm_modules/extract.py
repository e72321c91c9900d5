"""All of `llm-modules extract`: from settings to a store."""

from pathlib import Path

from llm_modules.data.templates import with_template
from llm_modules.errors import UserError
from llm_modules.features import distinct_texts
from llm_modules.machine import best_device
from llm_modules.modeling import CombinedModel
from llm_modules.processes import agree, is_first, together, wait_for_all
from llm_modules.processes import num_processes as num_launched
from llm_modules.settings import Settings
from llm_modules.store.extraction import Extraction
from llm_modules.store.key import Key
from llm_modules.store.training import default_folder
from llm_modules.training import facts, load_data, model_to_train


def extract(settings: Settings, *, out: Path | None, process: int, num_processes: int) -> Path:
    """Let the source read the examples that training on these settings would ask for; what is there stays.

    Processes that a launcher started together make sure that they mean the same; others only meet in the folder.

    Args:
        settings: Of the training.
        out: Folder of the store; `None` for the one that `training.features=auto` reads.
        process: Which of several processes this is, from 0.
        num_processes: How many share the shards.

    Returns:
        Folder of the store.

    Raises:
        UserError: For settings or data that cannot be used, a folder that holds something else, or too little room.
    """
    if settings.model.source is None:
        raise UserError("model.source is null, so nothing reads; name a source to extract from")
    with together():
        agree(facts(settings) | {"--out": out})
        return _extract(settings, out=out, process=process, num_processes=num_processes)


def _extract(settings: Settings, *, out: Path | None, process: int, num_processes: int) -> Path:
    model = model_to_train(settings, reads=True)
    assert isinstance(model, CombinedModel) and model.tokenizer is not None  # noqa: S101, PT018 - it has a source
    tokenizer = with_template(model.tokenizer, settings.data.template)
    data = load_data(settings.data, tokenizer, vocab_size=model.config.vocab_size)
    examples = [*data.training, *data.validation]
    for example in examples:
        model.check_room(len(example.prompt_ids), len(example.response_ids))
    model.to(best_device())
    print(f"{len(examples):,} examples")
    key = Key.of(model, tokenizer, dtype=settings.training.features_dtype)
    folder = default_folder(key) if out is None else out.expanduser()
    extraction = Extraction(
        folder,
        source=model.source,
        key=key,
        texts=distinct_texts(examples, visibility=model.config.visibility),
        process=process,
        num_processes=num_processes,
    )
    finished = extraction.run()
    wait_for_all()  # of one launch: then all shards are there, whoever was the last
    if is_first() and (finished or num_launched() > 1):
        dtype = settings.training.features_dtype
        asked = f" training.features_dtype={dtype}" if dtype and out is None else ""  # a folder says what it holds
        print(f"finished: {folder}\nto train on it: training.features={'auto' if out is None else folder}{asked}")
    return folder
