"""The only package that calls the Kubernetes API and the /progress of training pods."""
