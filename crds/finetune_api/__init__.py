"""The contract between users, operator and trainer. Operator and trainer share no other code.

``spec`` and ``status`` define the FineTuneJob that users see. ``wire`` defines the messages between operator and trainer.
``reasons`` says why a job failed and whether a retry can help. ``names`` and ``metrics`` hold the constants of both programs.
Nothing here does I/O except ``manifest``, ``files`` and ``cli``, which read the files of users.
"""

__version__ = "0.1.0"
