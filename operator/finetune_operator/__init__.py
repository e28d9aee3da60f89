"""The operator: turns FineTuneJobs into gangs of training pods, and says in their status what becomes of them.

handlers (kopf) put keys into the queue; ``reconcile`` observes, decides, builds, applies, writes the status. ``cluster`` is
the only caller of the API, ``manifests`` and ``policy`` are pure: they know neither clock nor client nor environment.
"""
