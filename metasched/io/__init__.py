"""Files: atomic writes, run folders and their lock, strict JSON and YAML."""
