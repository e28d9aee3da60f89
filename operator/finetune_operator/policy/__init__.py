"""The decisions of the operator, as pure functions of the observed state: attempts, failures, progress, status."""
