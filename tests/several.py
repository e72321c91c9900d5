"""Launch several processes, and what they run in the tests: `torchrun … -m tests.several RUNS FILE`."""

import json
import os
import subprocess
import sys
from pathlib import Path

from torch.distributed.tensor import DTensor

from llm_modules.data.templates import Example
from llm_modules.fingerprint import fingerprint_tensors
from llm_modules.processes import is_first, together
from llm_modules.sharding import whole_state
from llm_modules.training import TrainingData, fit
from tests.conftest import VOCAB, tiny_generator_config, tiny_pair, tiny_tokenizer

ROOT = Path(__file__).parents[1]
STEPS = 50
STILL = tiny_generator_config(embed_dropout=0.0, resid_dropout=0.0, attention_dropout=0.0)

# 10 examples: the last batch of an epoch is short, and of four processes two get none of it
RUNS = {
    "plain": ({}, {}),
    "accumulated": ({"visibility": "causal"}, {"gradient_accumulation_steps": 2}),
    "budget": ({"head": "new"}, {"tokens_per_batch": 40, "sampled_words": 5, "epoch_fraction": 0.8}),
    "checkpointed": ({"placement": "interleaved", "interleave_every": 1}, {"gradient_checkpointing": True}),
    "sharded": ({"taps": [0, -1]}, {"sharding": "fsdp2"}),
    "sharded, accumulated": ({"visibility": "causal"}, {"sharding": "fsdp2", "gradient_accumulation_steps": 2}),
}


def data():
    """Examples of very unequal numbers of labels."""
    made = [Example([3 + i, 5, 7], [(i * j) % (VOCAB - 3) + 3 for j in range(1, 2 + i * i % 11)]) for i in range(14)]
    return TrainingData(made[:10], made[10:])


def run(name, folder, **changes):
    """The course of a run, and what it left."""
    from tests.test_training import losses_of, settings_of

    choices, fields = RUNS[name]
    model = tiny_pair(generator=STILL, start="published", **choices)
    settings = settings_of(folder, **({"max_steps": STEPS, "batch_size": 4, "eval_steps": 25} | fields | changes))
    trainer = fit(model, data(), settings, tokenizer=tiny_tokenizer())
    shards = [isinstance(parameter, DTensor) for parameter in model.parameters() if parameter.ndim]
    trainer.save_trained(folder / "model")
    weights = whole_state(model)
    return {
        "loss": losses_of(trainer),
        "eval_loss": losses_of(trainer, "eval_loss"),
        "grad_norm": losses_of(trainer, "grad_norm"),
        "world_size": trainer.args.world_size,
        "shards": [sum(shards), len(shards)],
        "weights": fingerprint_tensors(weights.items()),
    }


def command(number, *arguments, module="llm_modules", options=("--standalone",)):
    """What starts a module in so many processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", *options, f"--nproc-per-node={number}"]
    return [*launcher, "-m", module, *map(str, arguments)]


def surroundings(**env):
    """Variables of such a launch."""
    # processes of one test cannot share one GPU: NCCL wants one for each
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""} | env


def launch(number, *arguments, env=None, **choices):
    """Run it to its end."""
    return subprocess.run(
        command(number, *arguments, **choices), capture_output=True, text=True, env=surroundings(**(env or {})),
        timeout=300, cwd=ROOT,
    )  # fmt: skip


def several(number, wanted, folder):
    """What came of some runs, `[name, folder, changes]` each, in the processes of one launch."""
    told = launch(number, json.dumps([[name, str(where), changes] for name, where, changes in wanted]), folder / "told",
                  module="tests.several")  # fmt: skip
    assert told.returncode == 0, told.stderr
    return json.loads((folder / "told").read_text(), object_hook=_numbered)


def _numbered(fields):
    """JSON makes words of the numbers of steps."""
    return {int(key) if key.isdigit() else key: value for key, value in fields.items()}


if __name__ == "__main__":
    with together(timeout_s=60):
        came = [run(name, Path(where), **changes) for name, where, changes in json.loads(sys.argv[1])]
        if is_first():
            Path(sys.argv[2]).write_text(json.dumps(came))
