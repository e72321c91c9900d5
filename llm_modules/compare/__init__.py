"""`llm-modules compare`: a pair and what else the same budget buys, on the same data, seeds and problems."""
