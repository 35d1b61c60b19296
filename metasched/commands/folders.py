"""A run folder from its first file to its mark of completion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metasched.config.writing import dump_yaml
from metasched.core.errors import MetaschedError
from metasched.io.atomic import write_atomic
from metasched.io.environment import environment
from metasched.io.json_text import json_text
from metasched.io.run_folder import RunFolder


@contextmanager
def begun(
    folder: RunFolder, config: Mapping[str, Any], made: Sequence[Path], command: str | None = None
) -> Iterator[None]:
    """Within: a new run works in a folder that has what is needed to repeat it.

    Args:
        folder: a claimed one.
        config: the experiment that runs, as ``to_dict`` has it.
        made: folders that were made for it, innermost first; a mistake that shows before work starts leaves none.
        command: the command line, where there is one.
    """
    try:
        write_atomic(folder.config, dump_yaml(config).encode())
        here = environment() | ({} if command is None else {"command": command})
        write_atomic(folder.environment, json_text(here, indent=2).encode())
        yield
        folder.finish()
    except MetaschedError:
        folder.discard(made)
        raise
    finally:
        folder.release()
