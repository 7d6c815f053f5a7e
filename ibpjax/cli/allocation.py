"""Memory that is freed stays with the process, where glibc would give it back to the system.

Programs that XLA compiles for CPUs ask for all their memory anew in each call. Much at a time comes from the system
and goes back to it, which clears its pages in between: a sixth of an IBP step of training, a third of a CROWN-IBP step.
"""
import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep() -> None:
  """From now on freed memory is kept, for the next that asks. Threads that have asked before may not take part.

  Nothing happens where the allocator is another.
  """
  if (mallopt := _libc('mallopt')) is not None:
    mallopt(_TRIM_THRESHOLD, 2 ** 31 - 1)
    mallopt(_MMAP_MAX, 0)
    mallopt(_ARENA_MAX, 1)


def give_back() -> None:
  """What is free now goes back to the system."""
  if (trim := _libc('malloc_trim')) is not None:
    trim(0)


def _libc(name):
  try:
    return getattr(ctypes.CDLL(None), name, None)
  except (OSError, TypeError):  # no library of C to look into
    return None
