"""The contract between users, operator and trainer: the only thing the two programs share.

``spec`` and ``status`` are the FineTuneJob as people see it, ``wire`` is what operator and trainer tell each other,
``reasons`` is why something failed and whether a retry heals it, ``names`` and ``metrics`` are the constants of both.
Nothing here does I/O except ``manifest``, ``files`` and ``cli``, which read the files of users.
"""

__version__ = "0.1.0"
