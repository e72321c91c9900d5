"""A store gives back what the source would read, belongs to one source, and loses nothing that is finished."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from llm_modules.data.templates import Example, with_template
from llm_modules.errors import MissingFileError, UserError
from llm_modules.features import distinct_texts, with_knowledge
from llm_modules.store import extraction as extraction_module
from llm_modules.store import plan
from llm_modules.store.encoding import bytes_per_token, decode, encode
from llm_modules.store.extraction import Extraction
from llm_modules.store.key import Key
from llm_modules.store.manifest import MANIFEST, Manifest
from llm_modules.store.reader import FeatureStore
from tests.conftest import D_SOURCE, VOCAB, tiny_pair, tiny_tokenizer

TAPS = [0, 2, -1]
TOKENIZER = tiny_tokenizer()
SHARD_TOKENS = 30


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(plan, "SHARD_BYTES", SHARD_TOKENS * bytes_per_token("float32", num_taps=3, d_source=D_SOURCE))


def examples(number=24, seed=0, shared=()):
    draw = random.Random(seed)
    words = lambda: [draw.randrange(3, VOCAB) for _ in range(draw.randint(1, 12))]  # noqa: E731
    return [Example([*shared, *words()], words()) for _ in range(number)]


def pair(visibility="prompt", **choices):
    return tiny_pair(visibility=visibility, taps=TAPS, start="published", **choices)


def quantised_pair():
    pytest.importorskip("bitsandbytes", reason="needs the extra `quantization`")
    model = pair()
    model.source.config.quantization_config = {"load_in_4bit": True}
    return model


def extraction_of(folder, given, *, model=None, dtype=None, tokenizer=TOKENIZER, **share):
    model = model or pair()
    key = Key.of(model, tokenizer, dtype=dtype)
    texts = distinct_texts(given, visibility=model.config.visibility)
    return Extraction(folder, source=model.source, key=key, texts=texts, report=lambda _: None, **share)


def extracted(folder, given, **choices):
    """A finished store of these examples."""
    assert extraction_of(folder, given, **choices).run()
    return FeatureStore(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")} | {
        MANIFEST: sorted(json.loads((folder / MANIFEST).read_text())["shards"], key=str)
    }


def shards(folder):
    return sorted(folder.glob("shard-*.safetensors"))


# -- what it gives back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("visibility", ["prompt", "causal"])
@pytest.mark.parametrize("shared", [(), (7, 8, 9, 10)])
def test_a_store_gives_back_what_the_source_reads(visibility, shared, tmp_path):
    model, given = pair(visibility), examples(shared=shared)
    store = extracted(tmp_path, given, model=model)
    assert len(shards(tmp_path)) > 2
    assert len(list(tmp_path.glob("prefix-*.safetensors"))) == bool(shared)
    read = [tuple(e.prompt_ids if visibility == "prompt" else e.input_ids) for e in given]
    assert len(store) == len(set(read))
    for text, states in zip(read, store.knowledge(read), strict=True):
        alone = model.read(torch.tensor([text])).states[0]
        assert states.shape == (len(text), len(TAPS), D_SOURCE)
        torch.testing.assert_close(states, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 2**-8), ("float16", 2**-11), ("int8", 0)])
def test_each_dtype_costs_no_more_than_its_rounding_and_takes_the_room_foretold(dtype, error, tmp_path):
    model, given = pair("causal"), examples(shared=(7, 8, 9))
    store = extracted(tmp_path, given, model=model, dtype=dtype)
    (found,) = store.knowledge([given[0].input_ids])
    exact = with_knowledge(model, given)[0].knowledge
    assert found.dtype == (torch.float32 if dtype == "int8" else getattr(torch, dtype))
    step = exact.abs().amax(-1, keepdim=True) / 127 / 2 if dtype == "int8" else exact.abs() * error
    assert ((found.float() - exact).abs() <= step * 1.001 + 1e-5).all()
    tokens = sum(entry.num_tokens for entry in store.manifest.shards)
    data = tokens * bytes_per_token(dtype, num_taps=3, d_source=D_SOURCE) + extraction_module.BYTES_PER_TEXT * len(
        store
    )
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert data <= size <= data + 640 * len(store.manifest.shards)  # their headers


@given(st.integers(1, 5), st.integers(1, 4), st.floats(1e-30, 1e30), st.integers(0, 99))
def test_int8_is_at_most_half_a_step_off_for_every_token_and_tap(tokens, taps, size, seed):
    states = torch.randn(tokens, taps, 6, generator=torch.Generator().manual_seed(seed)) * size
    states[0] = 0
    stored, scales = encode(states, "int8")
    assert ((decode(stored, scales) - states).abs() <= scales.unsqueeze(-1) * 0.5001).all()


@pytest.mark.parametrize(("value", "dtype", "message"), [
    (7e4, "float16", "a state of 70000 is beyond float16; choose bfloat16"),
    (float("nan"), "float32", "hold infinity or NaN"),
    (float("inf"), "int8", "hold infinity or NaN"),
])  # fmt: skip
def test_states_that_a_dtype_cannot_hold_are_refused(value, dtype, message):
    with pytest.raises(UserError, match=message):
        encode(torch.full((1, 1, 2), value), dtype)


def test_an_object_store_is_read_by_byte_ranges(tmp_path, monkeypatch):
    given = examples(shared=(7, 8, 9))
    local = extracted(tmp_path, given)
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/", "/bucket/features/", recursive=True)
    remote = FeatureStore("memory://bucket/features")
    whole = type(memory).cat_ranges
    asked = []

    def cat_ranges(self, paths, starts, ends, **kwargs):
        asked.append(sum(ends) - sum(starts))
        return whole(self, paths, starts, ends, **kwargs)

    monkeypatch.setattr(type(memory), "cat_ranges", cat_ranges)
    text = given[3].prompt_ids
    for _ in range(2):
        torch.testing.assert_close(remote.knowledge([text])[0], local.knowledge([text])[0], atol=0, rtol=0)
    token = bytes_per_token("float32", num_taps=3, d_source=D_SOURCE)
    assert asked == [(len(text) - 3) * token, 3 * token, (len(text) - 3) * token]  # the prefix once
    memory.rm(f"/bucket/features/{shards(tmp_path)[0].name}")
    with pytest.raises(UserError, match=f"{shards(tmp_path)[0].name} is missing"):
        FeatureStore("memory://bucket/features")


def test_equal_texts_are_stored_once_and_an_empty_extraction_is_a_store(tmp_path):
    store = extracted(tmp_path, [Example([5, 6], [7]), Example([8], [9]), Example([5, 6], [10])])
    assert len(store) == 2
    assert len(extracted(tmp_path / "empty", [])) == 0


# -- examples that come and go ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [(), (7, 8, 9, 10)])
def test_an_example_added_since_is_read_alone(shared, tmp_path):
    given = examples(shared=shared)
    before = extracted(tmp_path, given)
    was = contents(tmp_path)
    added = Example([7, 8, 9, 10, 11, 12], [5])
    assert tuple(added.prompt_ids) not in before
    with pytest.raises(UserError, match=r"a text of 6 tokens is not in the feature store.*extract"):
        before.knowledge([tuple(added.prompt_ids)])
    model = pair()
    seen = rows_read(model)
    store = extracted(tmp_path, [*given, added], model=model)
    assert sum(rows for rows, _ in seen) == 1 + bool(shared)
    assert len(store) == len(before) + 1
    now = contents(tmp_path)
    assert {name: now[name] for name in was if name != MANIFEST} == {n: was[n] for n in was if n != MANIFEST}
    alone = model.read(torch.tensor([added.prompt_ids])).states[0]
    torch.testing.assert_close(store.knowledge([added.prompt_ids])[0], alone, atol=1e-5, rtol=1e-5)


def test_an_example_removed_since_changes_nothing(tmp_path):
    given = examples()
    extracted(tmp_path, given)
    was = contents(tmp_path)
    extracted(tmp_path, given[1:])
    assert contents(tmp_path) == was


def rows_read(model):
    """Shape of all that the source reads from now on."""
    seen, whole = [], model.source.read

    def read(ids, **kwargs):
        seen.append(tuple(ids.shape))
        return whole(ids, **kwargs)

    model.source.read = read
    return seen


# -- whose states they are -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changed", "field"), [
    ({"model": lambda: pair(seed=1)}, "source_fingerprint"),
    ({"model": lambda: tiny_pair(taps=[0, -1])}, r"taps: the store has \[0, 2, 3\], this run wants \[0, 3\]"),
    ({"model": lambda: pair("causal")}, "reads: the store has prompt, this run wants all"),
    ({"model": lambda: pair(source_dtype=torch.bfloat16), "dtype": "float32"},
     "source_dtype: the store has float32, this run wants bfloat16"),
    ({"model": lambda: quantised_pair()},
     r"source_dtype: the store has float32, this run wants float32\+4bit"),
    ({"dtype": "int8"}, "dtype: the store has float32, this run wants int8"),
    ({"tokenizer": with_template(TOKENIZER, "plain")}, "template: "),
])  # fmt: skip
def test_a_store_of_other_states_is_refused_by_what_differs(changed, field, tmp_path):
    extracted(tmp_path, examples())
    if "model" in changed:
        changed = changed | {"model": changed["model"]()}
    with pytest.raises(UserError, match=f"holds other states than this run reads.*{field}"):
        extraction_of(tmp_path, examples(), **changed).run()


def test_another_tokenizer_is_named_and_calling_it_makes_it_no_other(tmp_path):
    own, other = tiny_tokenizer(), tiny_tokenizer()
    model = pair()
    key = Key.of(model, own)
    own(["a", "b c"], padding=False, truncation=True, max_length=1)
    assert Key.of(model, own) == key
    other.add_tokens(["newword"])
    with pytest.raises(UserError, match=r"\(tokenizer: the store has \w+, this run wants \w+\); extract into another"):
        key.check(Key.of(model, other), location="here")


# -- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["shard", "prefix"])
def test_a_shard_that_is_missing_or_cut_off_is_named_and_read_anew_alone(part, tmp_path):
    given = examples(shared=(7, 8, 9))
    extracted(tmp_path, given)
    was, damaged = contents(tmp_path), min(tmp_path.glob(f"{part}-*.safetensors"))
    for damage, message in (
        (lambda: damaged.write_bytes(damaged.read_bytes()[:-7]), "is cut off: .* bytes; delete this file"),
        (damaged.unlink, "is missing; delete this file if it is there and run `llm-modules extract` again"),
    ):
        damage()
        with pytest.raises(UserError, match=f"{damaged.name} {message}"):
            FeatureStore(tmp_path)
        model = pair()
        seen = rows_read(model)
        extracted(tmp_path, given, model=model)
        assert contents(tmp_path) == was
        assert sum(rows for rows, _ in seen) < len(given) / 2


def test_any_flipped_byte_is_noticed(tmp_path):
    given = examples(8)
    extracted(tmp_path, given, dtype="int8")
    shard = shards(tmp_path)[0]
    right = shard.read_bytes()
    texts = [tuple(example.prompt_ids) for example in given]
    draw = random.Random(0)
    for place in [0, 3, 9, len(right) - 1, *draw.sample(range(len(right)), 60)]:
        wrong = bytearray(right)
        wrong[place] ^= 1 << draw.randrange(8)
        shard.write_bytes(wrong)
        with pytest.raises(UserError, match=rf"{shard.name} has .* \(checksum\); delete this file"):
            FeatureStore(tmp_path).knowledge(texts)
    shard.write_bytes(right)
    FeatureStore(tmp_path).knowledge(texts)


def test_a_shard_deleted_while_it_is_read_is_named(tmp_path):
    given = examples()
    store = extracted(tmp_path, given)
    for shard in shards(tmp_path):
        shard.unlink()
    with pytest.raises(UserError, match=r"shard-\w+.safetensors is missing; .*`llm-modules extract` again"):
        store.knowledge([given[0].prompt_ids])


def test_a_folder_that_is_no_store_is_refused_both_ways(tmp_path):
    with pytest.raises(MissingFileError, match=r"holds no manifest.json, so it is no feature store"):
        FeatureStore(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be read"):
        FeatureStore("no-such-protocol://bucket")
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UserError, match=r"is no feature store and holds other files \(thesis.txt\)"):
        extraction_of(tmp_path, examples()).run()


@pytest.mark.parametrize(("text", "message"), [
    ("{", "manifest.json is damaged"),
    ('{"format": 2}', "has format 2; this version reads format 1"),
    ('{"format": 1}', r"manifest.json is damaged \(Field required\)"),
])  # fmt: skip
def test_a_manifest_that_cannot_be_read_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        Manifest.parse(text, location="here")


# -- room ------------------------------------------------------------------------------------------------------------


def test_too_little_room_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=4000)
    monkeypatch.setattr(extraction_module.shutil, "disk_usage", lambda _: usage)
    model = pair()
    seen = rows_read(model)
    with pytest.raises(UserError, match=r"needs 0.000 GB and 0.000 GB are free; make room.*smaller dtype"):
        extraction_of(tmp_path, examples(), model=model).run()
    assert seen == []


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of 96 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_fills_up_leaves_a_store_that_goes_on(small_disk, tmp_path, monkeypatch):
    given = examples(40)
    monkeypatch.setattr(Extraction, "_check_room", lambda *_: None)  # as if another program had filled it meanwhile
    with pytest.raises(UserError, match="the disk of .* is full; the shards that are finished are kept: make room"):
        extraction_of(small_disk / "store", given).run()
    finished = {path.name: path.stat().st_mtime_ns for path in shards(small_disk / "store")}
    assert len(finished) > 1
    assert not list((small_disk / "store").glob(".*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    extracted(small_disk / "store", given)
    assert finished.items() <= {path.name: path.stat().st_mtime_ns for path in shards(small_disk / "store")}.items()
    extracted(tmp_path / "elsewhere", given)
    assert contents(small_disk / "store") == contents(tmp_path / "elsewhere")


# -- several processes, and kills ------------------------------------------------------------------------------------


def test_two_processes_write_what_one_writes(tmp_path):
    given = examples(shared=(7, 8, 9))
    extracted(tmp_path / "one", given)
    share = lambda i: extraction_of(tmp_path / "two", given, process=i, num_processes=2)  # noqa: E731
    assert not share(1).run()
    with pytest.raises(MissingFileError, match="holds no"):
        FeatureStore(tmp_path / "two" / "nowhere")
    assert len(FeatureStore(tmp_path / "two")) == 0  # not finished
    assert share(0).run()
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert share(1).run()


@pytest.mark.parametrize(("held", "share"), [
    (".process-0-of-1.lock", {}),
    (".process-1-of-2.lock", {"process": 1, "num_processes": 2}),
    (".process-0-of-2.lock", {}),
])  # fmt: skip
def test_two_extractions_into_one_folder_are_refused(held, share, tmp_path):
    with (
        FileLock(tmp_path / held),
        pytest.raises(UserError, match=rf"another extraction \({held[1:-5].replace('-', ' ')}\) is writing into"),
    ):
        extraction_of(tmp_path, examples(), **share).run()


def test_shares_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(UserError, match="process=2 is not one of num_processes=2; count from 0"):
        extraction_of(tmp_path, examples(), process=2, num_processes=2)


def test_other_examples_after_a_cut_keep_what_was_finished(tmp_path):
    given = examples(shared=(7, 8, 9))
    assert not extraction_of(tmp_path, given, process=0, num_processes=2).run()
    half = {path.name for path in tmp_path.glob("*.safetensors")}
    more = [*given, *examples(5, seed=3)]
    with FileLock(tmp_path / ".process-1-of-2.lock"), pytest.raises(UserError, match=r"process 1 of 2"):
        extraction_of(tmp_path, more, process=0, num_processes=2).run()
    store = extracted(tmp_path, more)
    assert half < {entry.name for entry in store.manifest.shards}
    assert all(tuple(example.prompt_ids) in store for example in more)


FORKS = """
import os, sys, time
from tests.test_store import *
plan.SHARD_BYTES = SHARD_TOKENS * bytes_per_token("float32", num_taps=3, d_source=D_SOURCE)
write = extraction_module.write_shard
def slowly(*args, **kwargs):
    time.sleep(0.03)
    return write(*args, **kwargs)
extraction_module.write_shard = slowly
for line in sys.stdin:
    folder, process, num_processes = line.split()
    if (child := os.fork()) == 0:
        os.dup2(2, 1)
        given, share = examples(60, shared=(7, 8, 9)), {"process": int(process), "num_processes": int(num_processes)}
        extraction_of(Path(folder), given, **share).run()
        os._exit(0)
    print(child, flush=True)
"""


@pytest.fixture(scope="module")
def start():
    """Start a slow extraction in a process of its own; its id. One process imports, the others are forked from it."""
    command = [sys.executable, "-c", FORKS]
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as forks:

        def start(folder, process=0, num_processes=1):
            forks.stdin.write(f"{folder} {process} {num_processes}\n")
            forks.stdin.flush()
            return int(forks.stdout.readline())

        yield start
        forks.stdin.close()
        forks.kill()


def ended(pid):
    """Whether a process is gone, or only waits to be asked how it ended."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks into /proc")
def test_killed_at_any_moment_it_goes_on_to_the_very_same_store(start, tmp_path):
    given = examples(60, shared=(7, 8, 9))
    extracted(tmp_path / "whole", given)
    draw, folder, progress = random.Random(1), tmp_path / "killed", []
    for _ in range(5):
        process, wanted = start(folder), len(shards(folder)) + draw.randrange(3)
        while len(shards(folder)) < wanted and not ended(process):
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.06))
        os.kill(process, signal.SIGKILL)
        while not ended(process):
            time.sleep(0.01)
        progress.append({path.name: path.stat().st_mtime_ns for path in shards(folder)})
    for before, after in itertools.pairwise(progress):
        again = [name for name in before if after.get(name) != before[name]]
        assert len(again) <= 1  # killed between a shard and the word that it is finished
    assert len(progress[-1]) > 0
    extracted(folder, given)
    assert contents(folder) == contents(tmp_path / "whole")
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks into /proc")
def test_two_processes_at_the_same_time_finish_one_store(start, tmp_path):
    both = [start(tmp_path / "two", process, 2) for process in range(2)]
    while not all(map(ended, both)):
        time.sleep(0.01)
    assert not (tmp_path / "two" / "plan.json").exists()
    was = contents(tmp_path / "two")
    extracted(tmp_path / "one", examples(60, shared=(7, 8, 9)))
    assert was == contents(tmp_path / "one")
