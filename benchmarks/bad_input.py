"""`python -m benchmarks.bad_input`: 10,000 generated bad inputs to everything that reads what others may have written.

Each is a seed, whole or damaged (bits, bytes, pieces, words of its own format), or random text or bytes, or one of a
few made to exhaust their reader. It may be read, or refused by a `UserError`. Anything else that is raised, more than
ten seconds, or more memory than twice the file's size and 64 MB is written down, with the input.
"""

import contextlib
import io
import json
import pickle
import signal
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.results import parser, publish, table
from benchmarks.tiny_world import make_world
from llm_modules import CombinedModel, Source
from llm_modules.checkpoint import read_checkpoint
from llm_modules.checksums import read_json, write_json
from llm_modules.data.records import read_conversations
from llm_modules.errors import UserError
from llm_modules.features import Reading
from llm_modules.run_folder import as_yaml, verify_checkpoint
from llm_modules.settings import load_settings
from llm_modules.store.extraction import Extraction
from llm_modules.store.key import Key
from llm_modules.store.manifest import MANIFEST, Entry
from llm_modules.store.plan import PLAN, Plan
from llm_modules.store.reader import FeatureStore
from llm_modules.sweep_file import load_sweep
from llm_modules.training import build_model

TOTAL, QUICK_TOTAL = 10_000, 200
LIMIT_S = 10
FREE_BYTES = 64 * 2**20
WORDS = [
    b"null", b"true", b"-1", b"1e999", b"nan", b"[]", b"{}", b'""', b"../../x", b"\0", b"\xff\xfe", b"\n", b": ", b"- ",
    b"&a", b"*a", b"!!python/object/apply:os.system [id]", b"!!binary x", b"2001-99-99", b"9" * 5000, b"[" * 2000,
    b"{\"a\":" * 2000, b"source", b"name", b"../", b"data", b'"', b"'", b",", b"0" * 64, "é".encode(), b"\xf0\x9f",
]  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """Something that reads.

    Args:
        name: Of the row.
        share: How many of all inputs it gets, in hundredths.
        seeds: Inputs as they should be, and some that are made to exhaust it.
        read: Reads the input.
    """

    name: str
    share: int
    seeds: Sequence[bytes]
    read: Callable[[bytes], Any]


@dataclass
class Count:
    """What became of a reader's inputs.

    Args:
        inputs: All of them.
        refused: By a `UserError`.
        slowest_s: The longest that one took.
        most_bytes: The most memory that one took beyond twice its size.
        wrong: What should not have been, a line each.
    """

    inputs: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    most_bytes: int = 0
    wrong: list[str] = field(default_factory=list)


@st.composite
def damaged(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """A seed with some of it changed, or something else altogether."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.binary(max_size=300))
    if kind == 1:
        return draw(st.text(max_size=200)).encode("utf-8", "surrogatepass")
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.sampled_from([1, 1, 2, 8, 60, 1000]))
        match draw(st.sampled_from(["flip", "drop", "cut", "double", "word", "swap"])):
            case "flip" if content:
                content[place] ^= 1 << draw(st.integers(0, 7))
            case "drop":
                del content[place : place + length]
            case "cut":
                del content[place:]
            case "double":
                content[place:place] = content[place : place + length]
            case "word":
                content[place:place] = draw(st.sampled_from(WORDS))
            case "swap":
                content[place : place + length] = draw(st.sampled_from(WORDS))
    return bytes(content)


def run_reader(reader: Reader, number: int, *, seed_number: int) -> Count:
    """Give it so many inputs."""
    count = Count()

    @seed(seed_number)
    @settings(
        max_examples=number, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(damaged(reader.seeds))
    def one(content: bytes) -> None:
        _try(reader, content, count)

    for content in reader.seeds[:number]:
        _try(reader, content, count)
    if number > len(reader.seeds):
        one()
    return count


def _try(reader: Reader, content: bytes, count: Count) -> None:
    count.inputs += 1
    before, start = _reset_peak(), time.perf_counter()
    said = ""
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            reader.read(content)
    except UserError:
        count.refused += 1
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        said = "".join(traceback.format_exception(error)[-3:])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    taken = _peak() - before - 2 * len(content)
    took = time.perf_counter() - start
    count.slowest_s = max(count.slowest_s, took)
    count.most_bytes = max(count.most_bytes, taken)
    if took > LIMIT_S and not said:  # its reader caught what was raised after that time
        said = "too slow"
    if taken > FREE_BYTES:
        said += f" {taken / 2**20:.0f} MB beyond twice its size"
    if said:
        count.wrong.append(f"{reader.name}: {content[:300]!r}: {said}")


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def readers(world: Path) -> list[Reader]:
    """All that read, in a tiny world."""
    recipe = make_world(world)
    text = recipe.read_bytes()
    whole = as_yaml(load_settings(recipe)).encode()
    bombs = [
        _aliases(),
        b"a: " + b"[" * 20_000,
        b"a: &a [*a]",
        b"? [a]\n: b",
        b"data: {task: 2001-13-45}",
        b"- " * 30_000,
    ]
    model = build_model(load_settings(recipe).model, seed=0)
    source = model.source
    folder = _model_folder(model, world)
    return [
        Reader("configuration", 20, [text, whole, *bombs], _file_reader(world / "x.yaml", load_settings)),
        Reader("override", 5, [b"training.seed=3", b"model.taps=[0, -1]", *(b"data.task=" + bomb for bomb in bombs)],
               lambda content: load_settings(recipe, [content.decode("utf-8", "replace")])),
        Reader("sweep", 5, [_sweep(text), *bombs],
               _file_reader(world / "sweep.yaml", lambda file: load_sweep(file, []))),
        *_data(world),
        Reader("feature store", 15, _manifests(world, source, model), _store_reader(world)),
        Reader("figures", 5, [_figures(world), b"[" * 50_000, b'{"a":' * 50_000, b"9" * 5000],
               _file_reader(world / "figures.json", read_json)),
        Reader("model: config.json", 6, [(folder / "config.json").read_bytes(), b"[" * 50_000, b'{"a":' * 20_000],
               _model_reader(folder, "config.json", source)),
        Reader("model: weights", 4, [(folder / "model.safetensors").read_bytes(), b"\xff" * 8 + b"{}", b"\0" * 8],
               _model_reader(folder, "model.safetensors", source)),
        Reader("model: tokenizer", 4, [(folder / "tokenizer.json").read_bytes(), b"[" * 5_000],
               _model_reader(folder, "tokenizer.json", source)),
        Reader("checkpoint: SHA256SUMS", 6, [(folder / "SHA256SUMS").read_bytes(), b"0" * 64 + b"  ../x\n"],
               _checkpoint_reader(folder)),
        Reader("import", 10, _checkpoints(model), _file_reader(world / "best.pth", read_checkpoint)),
    ]  # fmt: skip


def _file_reader(file: Path, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    def reader(content: bytes) -> Any:
        file.write_bytes(content)
        return read(file)

    return reader


def _aliases() -> bytes:
    """Nine lines that come to a thousand million values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join(lines).encode()


def _sweep(recipe: bytes) -> bytes:
    indented = recipe.replace(b"\n", b"\n  ")
    return b"base:\n  " + indented + b"\nevaluation: {task: arithmetic}\nfactors: {model.num_heads: [1, 2]}\n"


def _data(world: Path) -> list[Reader]:
    turns = [{"role": "user", "content": "1 + 1 ?"}, {"role": "assistant", "content": "2"}]
    records = [{"messages": turns}, {"prompt": "a", "completion": "b", "system": "c"}]
    lines = "\n".join(json.dumps(record) for record in records).encode()
    told = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"prompt": "a", "completion": "b"}] * 50), told)
    forms = {
        "jsonl": (8, [lines, b'{"a":' * 50_000, b'{"prompt": ' + b"9" * 5000 + b"}"]),
        "json": (5, [json.dumps(records).encode(), b"[" * 50_000]),
        "csv": (5, [b"prompt,completion\na,b\nc,d\n", b'messages\n"[{""role"": ""user""}]"\n', b'"' * 50_000]),
        "parquet": (2, [told.getvalue()]),
    }
    return [
        Reader(f"data: {form}", share, seeds, _file_reader(world / f"x.{form}", read_conversations))
        for form, (share, seeds) in forms.items()
    ]


def _manifests(world: Path, source: Source, model: CombinedModel) -> list[bytes]:
    """A real one, and ones whose plan or entries were touched."""
    texts = [(3, 4, 5), (3, 4, 6, 7)]
    assert source.tokenizer is not None
    key = Key.of(model, source.tokenizer)
    Extraction(world / "store", source=source, key=key, texts=texts, report=lambda _: None).run()
    Reading(source, taps=key.taps)([texts[0]])
    manifest = (world / "store" / MANIFEST).read_bytes()
    fields = json.loads(manifest)
    fields["shards"][0]["name"] = "../../../etc/passwd"
    del fields["sha256"]
    return [manifest, json.dumps(fields).encode(), b'{"format": 1, "a":' * 20_000, b"[" * 50_000]


def _store_reader(world: Path) -> Callable[[bytes], Any]:
    store = world / "store"

    def read(content: bytes) -> None:
        (store / PLAN).write_bytes(content)
        Plan.read(store)
        (store / PLAN).unlink()
        (store / "shard-00.json").write_bytes(content)
        Entry.read(store, "shard-00.safetensors")
        (store / "shard-00.json").unlink()
        (store / MANIFEST).write_bytes(content)
        FeatureStore(store).verify()

    return read


def _figures(world: Path) -> bytes:
    write_json(world / "right.json", {"point": "a", "correct": [1, 0], "loss": 1.25})
    return (world / "right.json").read_bytes()


def _model_folder(model: CombinedModel, world: Path) -> Path:
    model.tokenizer = model.source.tokenizer
    model.save_pretrained(world / "model")
    return world / "model"


def _model_reader(folder: Path, name: str, source: Source) -> Callable[[bytes], Any]:
    """A model that others made: without checksums, or every input would be refused for these alone."""
    sums = (folder / "SHA256SUMS").read_bytes()

    def read(content: bytes) -> None:
        right = (folder / name).read_bytes()
        (folder / "SHA256SUMS").unlink()
        (folder / name).write_bytes(content)
        try:
            CombinedModel.from_pretrained(folder, source=source)
        finally:
            (folder / name).write_bytes(right)
            (folder / "SHA256SUMS").write_bytes(sums)

    return read


def _checkpoint_reader(folder: Path) -> Callable[[bytes], Any]:
    sums = folder / "SHA256SUMS"

    def read(content: bytes) -> None:
        right = sums.read_bytes()
        sums.write_bytes(content)
        try:
            verify_checkpoint(folder)
        finally:
            sums.write_bytes(right)

    return read


def _checkpoints(model: CombinedModel) -> list[bytes]:
    """Checkpoints of the published form, new and old; one compressed to a thousandth; pickles of other things."""
    found = []
    for new in (True, False):
        content = io.BytesIO()
        held = {"model_state_dict": model.state_dict(), "epoch": 3}
        torch.save(held, content, _use_new_zipfile_serialization=new)
        found.append(content.getvalue())
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", b"\0" * (300 * 2**20))
        packed.writestr("archive/version", b"3\n")
    whole = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(found[0])) as before, zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in before.namelist():
            packed.writestr(name, before.read(name))
    return [
        *found, bomb.getvalue(), whole.getvalue(), pickle.dumps({"a": 1}, protocol=2),
        b"cbuiltins\nbytearray\n(I400000000\ntR.", b"\x80\x02" + b"(" * 50_000, b"PK\x03\x04" + b"\0" * 50,
    ]  # fmt: skip


def _too_long(*_: object) -> None:
    raise TimeoutError(f"took longer than {LIMIT_S} s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Give all readers their share, print and publish; ends with an error if anything was wrong."""
    options = parser("bad_input", __doc__.partition("\n")[0])
    options.add_argument("--seed", type=int, default=0, help="of the inputs")
    options.add_argument("--only", help="parts of readers' names, as csv,import")
    given_options, started = options.parse_args(arguments), time.perf_counter()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_long)
    total = QUICK_TOTAL if given_options.quick else TOTAL
    counts: dict[str, Count] = {}
    with tempfile.TemporaryDirectory() as folder:
        for reader in readers(Path(folder)):
            if given_options.only is None or any(part in reader.name for part in given_options.only.split(",")):
                count = run_reader(reader, total * reader.share // 100, seed_number=given_options.seed)
                counts[reader.name] = count
                print(f"{reader.name}: {count.inputs:,} inputs, {len(count.wrong)} wrong", flush=True)
                for line in count.wrong[:3]:
                    print(f"  {line}")
    head = ["reader", "inputs", "refused", "read", "slowest, s", "most memory beyond twice the size, MB", "wrong"]
    rows = [
        [
            name, f"{one.inputs:,}", f"{one.refused:,}", f"{one.inputs - one.refused - len(one.wrong):,}",
            f"{one.slowest_s:.2f}", f"{max(0, one.most_bytes) / 2**20:.0f}", str(len(one.wrong)),
        ]
        for name, one in counts.items()
    ]  # fmt: skip
    if given_options.only is None:
        publish(
            "survival", given_options, command="python -m benchmarks.bad_input", started=started,
            measured=table(head, rows), block="bad-input",
            results={"seed": given_options.seed, "readers": {name: vars(one) for name, one in counts.items()}},
        )  # fmt: skip
    else:
        print(table(head, rows))
    if wrong := sum(len(one.wrong) for one in counts.values()):
        raise SystemExit(f"{wrong} wrong")


if __name__ == "__main__":
    main()
