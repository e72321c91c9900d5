"""From records to batches: `records` → `templates` → `dataset`."""
