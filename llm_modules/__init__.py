"""LLM Modules: a frozen large language model plus a small trainable partner (arXiv 2502.08213).

Names are imported when they are first asked for, so that `llm-modules --help` does not wait for torch. The combined
model is registered with transformers' `AutoConfig` and `AutoModelForCausalLM` by
`from llm_modules import CombinedModel`, and by `import llm_modules` if transformers is there already.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_modules.attention import EnhancedCrossAttention, VisibleKnowledge
    from llm_modules.configuration import CombinedConfig
    from llm_modules.errors import UserError
    from llm_modules.knowledge import CombinedCache, Knowledge
    from llm_modules.modeling import CombinedModel
    from llm_modules.source import Source

__all__ = [
    "CombinedCache",
    "CombinedConfig",
    "CombinedModel",
    "EnhancedCrossAttention",
    "Knowledge",
    "Source",
    "UserError",
    "VisibleKnowledge",
]

_HOMES = {
    "CombinedCache": "knowledge",
    "CombinedConfig": "configuration",
    "CombinedModel": "modeling",
    "EnhancedCrossAttention": "attention",
    "Knowledge": "knowledge",
    "Source": "source",
    "UserError": "errors",
    "VisibleKnowledge": "attention",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return [*globals(), *__all__]


if "transformers" in sys.modules:
    import_module(f"{__name__}.modeling")
