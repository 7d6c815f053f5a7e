"""How commands begin: flags, what the log says, and programs compiled before."""
import os
import pathlib
from collections.abc import Callable

import jax
from absl import app, logging

from ibpjax.cli import allocation

COMPILED = pathlib.Path('~/.cache/ibpjax')


def run(main: Callable[[], None], keep: bool = True) -> None:
  """Parses the flags, refuses arguments that are none, and calls `main`.

  Args:
    main: reads flags.
    keep: what XLA compiles in a second or more, in `COMPILED`, for the next command that needs it. The folder is
      another if JAX is told so (JAX_COMPILATION_CACHE_DIR), and none with JAX_ENABLE_COMPILATION_CACHE=0.
  """
  def start(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f'unexpected arguments {argv[1:]}: all options are flags, --name=value')
    allocation.keep()
    logging.set_verbosity(logging.ERROR)  # of the checkpoint library
    if keep and jax.config.values['jax_compilation_cache_dir'] is None:
      jax.config.update('jax_compilation_cache_dir', os.fspath(COMPILED.expanduser()))
    main()
  app.run(start)
