"""Let the source read what a store lacks, shard by shard; what is finished is never read again."""

import errno
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor
from tqdm.auto import tqdm

from llm_modules.errors import UserError
from llm_modules.features import Reading, Text, batches
from llm_modules.source import Source
from llm_modules.store.encoding import bytes_per_token
from llm_modules.store.key import Key
from llm_modules.store.locks import Claim, planning
from llm_modules.store.manifest import MANIFEST, Entry, Manifest, entry_name
from llm_modules.store.plan import PLAN, Plan
from llm_modules.store.reader import FeatureStore
from llm_modules.store.shards import write_shard

HALF_WRITTEN = (".shard-*", ".prefix-*", f".{MANIFEST}.*", f".{PLAN}.*")
BYTES_PER_TEXT = 32  # offset, digest and checksum


class Extraction:
    """One process's share of filling a store.

    Args:
        folder: Of the store; made if it is not there.
        source: The frozen model that reads.
        key: Whose states the store holds.
        texts: All that should be in it, as token ids, in order of length.
        process: Which of the processes, from 0.
        num_processes: How many share the work; shard `i` belongs to process `i % num_processes`.
        report: Receives lines for the reader.
    """

    def __init__(
        self, folder: Path, *, source: Source, key: Key, texts: Sequence[Text], process: int = 0,
        num_processes: int = 1, report: Callable[[str], object] = print,
    ) -> None:  # fmt: skip
        if not 0 <= process < num_processes:
            raise UserError(f"process={process} is not one of num_processes={num_processes}; count from 0")
        self.folder, self.source, self.key, self.texts = folder, source, key, list(texts)
        self.process, self.num_processes, self.report = process, num_processes, report
        width = source.config.get_text_config().hidden_size
        self.bytes_per_token = bytes_per_token(key.dtype, num_taps=len(key.taps), d_source=width)

    def run(self) -> bool:
        """Read what is missing, tell size and time before; whether the store is finished now.

        Raises:
            UserError: If the folder holds other states, cannot be written, has too little room, or another process is
                at work in it.
        """
        with self._claimed() as (plan, missing):
            unfinished = plan.unfinished(self.folder)
            num_tokens = sum(planned.num_tokens for planned in unfinished)
            self.report(
                f"{self.folder}: {len(self.texts):,} distinct texts, {len(missing):,} of them not yet finished; "
                f"{num_tokens:,} tokens to read in {len(unfinished):,} shards"
            )
            if unfinished:
                self._check_room(num_tokens, sum(planned.num_texts for planned in unfinished))
                self._read(plan, missing)
            return self._commit(plan)

    def _check_room(self, num_tokens: int, num_texts: int) -> None:
        needed = num_tokens * self.bytes_per_token + num_texts * BYTES_PER_TEXT
        free = shutil.disk_usage(self.folder).free
        self.report(f"{needed / 1e9:.3f} GB on the disk, {free / 1e9:.1f} GB free")
        if needed > free:
            raise UserError(
                f"{self.folder} needs {needed / 1e9:.3f} GB and {free / 1e9:.3f} GB are free; make room, choose "
                "another folder, or a smaller dtype (bfloat16, int8)"
            )

    def _read(self, plan: Plan, missing: Sequence[Text]) -> None:
        """Write this process's shards."""
        unfinished = {planned.name for planned in plan.unfinished(self.folder)}
        for planned in plan.shards:  # first, and by every process: each needs what the source knows of it
            if planned.prefix_ids is not None and planned.name in unfinished:
                ids = tuple(planned.prefix_ids)
                (whole,) = Reading(self.source, taps=self.key.taps)([ids])
                write_shard(
                    self.folder / planned.name, [(ids, whole)], dtype=self.key.dtype, prefix_ids=planned.prefix_ids
                )
        shards = list(plan.with_texts(missing))[self.process :: self.num_processes]
        shards = [(planned, texts) for planned, texts in shards if planned.name in unfinished]
        if not shards:
            return
        reading = Reading(self.source, taps=self.key.taps, prefix=tuple(plan.prefix))
        num_tokens = sum(planned.num_tokens for planned, _ in shards)
        with tqdm(total=num_tokens, desc="source reads", unit=" tokens", unit_scale=True) as progress:
            for planned, texts in shards:
                states = self._states(reading, texts, progress)
                write_shard(self.folder / planned.name, states, dtype=self.key.dtype, prefix=planned.prefix)

    def _states(self, reading: Reading, texts: Sequence[Text], progress: tqdm) -> Iterator[tuple[Text, Tensor]]:
        for batch in batches(texts):
            started = time.perf_counter()
            yield from zip(batch, reading(batch), strict=True)
            num_tokens = sum(len(text) - len(reading.prefix) for text in batch)
            if not progress.n:
                seconds = (time.perf_counter() - started) / num_tokens * (progress.total or 0)
                about = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
                progress.write(f"about {about}, measured on the first {num_tokens} tokens")
            progress.update(num_tokens)

    @contextmanager
    def _claimed(self) -> Iterator[tuple[Plan, list[Text]]]:
        """The folder for this process's share: what to do in it, and the texts that are missing."""
        claim = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with planning(self.folder):
                claim = Claim(self.folder, process=self.process, num_processes=self.num_processes)
                found = self._agree(claim)
            yield found
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"the disk of {self.folder} is full; the shards that are finished are kept: make room and run the "
                    "same again"
                ) from error
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.folder} cannot be written ({error.strerror}); choose another folder") from error
        finally:
            if claim is not None:
                claim.release()

    def _agree(self, claim: Claim) -> tuple[Plan, list[Text]]:
        """The plan of all processes: the one there is, or a new one for the texts that are missing."""
        manifest, left = self._manifest(), Plan.read(self.folder)
        if claim.alone:  # then what is half written was left by a kill
            for pattern in HALF_WRITTEN:
                for file in self.folder.glob(pattern):
                    file.unlink()
        plan, missing = self._plan(manifest)
        if left is not None and left.agrees_with(plan):
            return left, missing
        if left is not None:  # other texts than those of the extraction that was cut off
            claim.refuse_others()
            manifest = self._adopt(manifest, left)
            plan, missing = self._plan(manifest)
        if plan.shards:
            self._forget_lost(manifest)
            plan.write(self.folder)
        return plan, missing

    def _manifest(self) -> Manifest:
        """Of the folder, which becomes a store if it is empty."""
        path = self.folder / MANIFEST
        if path.is_file():
            manifest = Manifest.parse(path.read_bytes(), location=str(self.folder))
            manifest.key.check(self.key, location=str(self.folder))
            return manifest
        if foreign := [found.name for found in self.folder.iterdir() if not found.name.startswith(".")]:
            raise UserError(
                f"{self.folder} is no feature store and holds other files ({foreign[0]}); choose a new folder"
            )
        manifest = Manifest(source=self.source.source_id, key=self.key)
        manifest.write(self.folder)
        return manifest

    def _plan(self, manifest: Manifest) -> tuple[Plan, list[Text]]:
        """For what the whole shards of a manifest lack."""
        whole = [entry for entry in manifest.shards if entry.is_whole(self.folder)]
        lost = [entry for entry in manifest.shards if entry not in whole and entry.prefix_ids is not None]
        known = [entry for entry in whole if entry.prefix_ids is not None]
        stored = FeatureStore(self.folder, entries=whole)
        missing = [text for text in self.texts if text not in stored]
        return Plan.of(missing, lost=lost, known=known, bytes_per_token=self.bytes_per_token), missing

    def _forget_lost(self, manifest: Manifest) -> None:
        """Take shards that are gone or cut off out of the manifest, so that every process misses the same texts.

        A lost prefix stays: other shards refer to it, and the plan writes it again.
        """
        lost = [entry for entry in manifest.shards if not entry.is_whole(self.folder)]
        if lost:
            kept = [entry for entry in manifest.shards if entry not in lost or entry.prefix_ids is not None]
            manifest.model_copy(update={"shards": kept}).write(self.folder)
            for entry in lost:
                (self.folder / entry.name).unlink(missing_ok=True)

    def _adopt(self, manifest: Manifest, plan: Plan) -> Manifest:
        """Into the manifest with what is finished of a plan, in place of lost ones of the same name; the plan goes."""
        entries = [Entry.read(self.folder, planned.name) for planned in plan.shards]
        finished = {entry.name: entry for entry in entries if entry is not None}
        kept = [entry for entry in manifest.shards if entry.name not in finished]
        manifest = manifest.model_copy(update={"shards": [*kept, *finished.values()]})
        manifest.write(self.folder)
        (self.folder / PLAN).unlink(missing_ok=True)
        for planned in plan.shards:
            with suppress(FileNotFoundError):
                (self.folder / entry_name(planned.name)).unlink()
        return manifest

    def _commit(self, plan: Plan) -> bool:
        """Name all shards in the manifest, if this was the last of them."""
        with planning(self.folder):
            if Plan.read(self.folder) != plan:  # nothing was missing, or another process has done this
                return True
            if plan.unfinished(self.folder):
                self.report("this process's shards are finished; the store is when those of the others are")
                return False
            self._adopt(self._manifest(), plan)
            return True
