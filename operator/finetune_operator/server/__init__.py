"""The only package that serves HTTP: the probes of the kubelet, and the metrics."""
