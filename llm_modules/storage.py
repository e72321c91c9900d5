"""Saving and loading: bridge and generator in a folder, the source by name and fingerprint."""

import warnings
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_modules.card import model_card
from llm_modules.checksums import is_sealed, verify
from llm_modules.configuration import CombinedConfig
from llm_modules.errors import UserError
from llm_modules.files import write_text
from llm_modules.fingerprint import fingerprint_combined, weight_files
from llm_modules.folders import written_beside
from llm_modules.hub import fetch
from llm_modules.source import Source, SourceLike
from llm_modules.source_files import stored_config, stored_tokenizer


class StoredModel(PreTrainedModel):
    """A model whose source is stored elsewhere: never saved with it, loaded by name, checked by fingerprint."""

    config: CombinedConfig
    tokenizer: PreTrainedTokenizerBase | None
    _attached_source: Source | None

    @property
    def source(self) -> Source:
        """The frozen source; may be set to another view of it (see `controls`)."""
        if self._attached_source is None:
            raise UserError("this model has no source yet; load it with from_pretrained or call attach_source_")
        return self._attached_source

    @source.setter
    def source(self, source: Source) -> None:
        self._attached_source = source

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: Any,
        source: SourceLike | None = None,
        source_dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ) -> Self:
        """Load bridge and generator from a folder, and the source from where the folder says it came from.

        Args:
            pretrained_model_name_or_path: Folder that `save_pretrained` wrote, or hub id of one.
            source: Use this source instead, for example one that other models already hold; it must be the one the
                model was trained with.
            source_dtype: Dtype of a source that is loaded here.

        Raises:
            UserError: If the folder is incomplete or changed, or the source is another one.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = fetch(str(pretrained_model_name_or_path), revision=kwargs.get("revision"))
        verify(folder)
        config = kwargs.pop("config", None) or _read_config(folder)
        verify_model(folder, config)
        kwargs.setdefault("dtype", torch.float32)  # what trains must not follow the file's dtype
        kwargs.pop("revision", None)
        kwargs["output_loading_info"] = True
        try:
            model, info = super().from_pretrained(folder, *args, config=config, **kwargs)
        except UserError:
            raise
        except Exception as error:  # shapes that config.json does not have, or values that no model can have
            raise UserError(f"{folder} does not hold this model's weights ({error}); save the model again") from error
        wrong = {kind: sorted(map(str, info[kind])) for kind in info if info[kind]}
        if wrong:
            raise UserError(f"{folder} does not hold this model's weights: {wrong}; save the model again")
        if source is None and config.source_id is None:
            raise UserError(f"the source of {folder} was never stored; pass it as from_pretrained(..., source=...)")
        if (folder / "tokenizer_config.json").is_file():
            model.tokenizer = stored_tokenizer(folder)
        if source is None:
            try:
                source = Source.of(
                    config.source_id,
                    revision=config.source_revision,
                    dtype=source_dtype,
                    quantization=config.source_quantization,
                )
            except UserError as error:
                raise UserError(
                    f"the source of {folder} cannot be loaded: {error}. If it lies elsewhere, pass it as "
                    "from_pretrained(..., source=...)"
                ) from error
        return model.attach_source_(Source.of(source, dtype=source_dtype, quantization=config.source_quantization))

    def attach_source_(self, source: Source) -> Self:
        """Give the model its source, checking that it is the one the model was made with.

        Raises:
            UserError: If the source's weights are not those the model was trained with.
        """
        expected, found = self.config.source_fingerprint, source.fingerprint
        if expected is None:
            self.config.source_fingerprint = found
            self.config.source_id, self.config.source_revision = source.source_id, source.revision
            self.config.source_quantization = source.quantization
            self.config.bos_token_id = source.config.get_text_config().bos_token_id
            self.config.eos_token_id = source.config.get_text_config().eos_token_id
        elif expected != found:
            raise UserError(
                f"this model was trained with the source {self.config.source_id or 'given in memory'} "
                f"(fingerprint {expected}), not with {source.source_id or 'the one given'} (fingerprint {found}); "
                "load it with the source it was trained with"
            )
        elif source.quantization != self.config.source_quantization:
            warnings.warn(
                f"this model was trained with its source in {self.config.source_quantization or 'full precision'} and "
                f"is given one in {source.quantization or 'full precision'}: its states differ a little",
                stacklevel=2,
            )
        self.source = source
        if source.model is not None and source.model.generation_config is not None:
            own = source.model.generation_config
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                setattr(self.generation_config, name, getattr(own, name))
        return self

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save bridge, generator, configuration, tokenizer and a model card; never the source's weights.

        The folder takes its name only when it is complete.
        """
        with written_beside(Path(save_directory)) as beside:
            super().save_pretrained(beside, **kwargs)
            self.config.weights_fingerprint = fingerprint_combined(beside)
            self.config.save_pretrained(beside)
            tokenizer = self.tokenizer
            if tokenizer is None and self._attached_source is not None:
                tokenizer = self._attached_source.tokenizer
            if tokenizer is not None:
                tokenizer.save_pretrained(beside)
            write_text(beside / "README.md", model_card(self.config, self.num_parameters()))


def verify_model(folder: Path, config: CombinedConfig) -> None:
    """Check that weights and choices in a folder are what `save_pretrained` wrote; a sealed folder says so itself.

    Raises:
        UserError: If they are missing, cut off, or changed.
    """
    if is_sealed(folder):
        weight_files(folder)
        return
    found = fingerprint_combined(folder)
    if config.weights_fingerprint != found:
        raise UserError(
            f"the model in {folder} is not what was saved (fingerprint {found}, its config.json says "
            f"{config.weights_fingerprint}); weights or configuration were changed or damaged: restore or save it again"
        )


def _read_config(folder: Path) -> CombinedConfig:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json; give a folder that save_pretrained wrote")
    config = stored_config(folder)
    if not isinstance(config, CombinedConfig):
        raise UserError(f"{folder} holds a {config.model_type} model, not a combined model; give one trained here")
    return config
