"""The model card that `save_pretrained` writes beside the weights."""

from llm_modules.configuration import CombinedConfig

CARD = """\
---
library_name: llm-modules
pipeline_tag: text-generation
{base_model}---

# A combined model: {generator_type} partner of {source}

A frozen source and a small trained partner, joined by Enhanced Cross-Attention (arXiv 2502.08213), made with
`llm-modules`. This folder holds the {parameters:,} trained parameters of bridge and generator; the source's weights are
not in it and are loaded from where they came from.

| | |
|---|---|
| source | {source}, revision {revision}, fingerprint `{fingerprint}` |
| generator | {generator_type}, width {d_generator}, {generator_layers} layers |
| visibility | `{visibility}` |
| head, start | `{head}`, `{start}` |
| source layers read | {taps} |

```python
from transformers import AutoTokenizer
from llm_modules import CombinedModel

model = CombinedModel.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```
"""


def model_card(config: CombinedConfig, num_parameters: int) -> str:
    """Markdown card of a combined model with its trained parameter count."""
    on_hub = config.source_revision is not None
    return CARD.format(
        base_model=f"base_model: {config.source_id}\n" if on_hub else "",
        source=config.source_id or "a source that was never stored",
        revision=config.source_revision or "none",
        fingerprint=config.source_fingerprint,
        generator_type=config.generator.model_type,
        d_generator=config.d_generator,
        generator_layers=config.generator.get_text_config().num_hidden_layers,
        visibility=config.visibility,
        head=config.head,
        start=config.start,
        taps=", ".join(map(str, config.taps)),
        parameters=num_parameters,
    )
