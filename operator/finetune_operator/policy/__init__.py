"""What the operator decides, as pure functions of what it observed: attempts, failures, progress, status."""
