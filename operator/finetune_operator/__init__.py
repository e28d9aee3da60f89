"""The operator: creates training pods for FineTuneJobs, and reports in their status how they proceed.

``handlers`` (kopf) puts keys into the queue. ``reconcile`` observes, decides, builds, applies, and writes the status. Only
``cluster`` calls the API. ``manifests`` and ``policy`` are pure: they use neither the clock nor a client nor the environment.
"""
