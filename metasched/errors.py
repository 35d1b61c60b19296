"""``MetaschedError``, where scripts of the first version import it; new ones say ``metasched.MetaschedError``."""

from metasched.core.errors import MetaschedError as MetaschedError
