"""Files: atomic writes, run folders with a lock, strict JSON and YAML."""
