"""Many modules on one source behind OpenAI's HTTP interface: `llm-modules serve`."""
