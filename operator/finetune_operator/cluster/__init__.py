"""The only caller of the Kubernetes API, and of the training pods' /progress."""
