"""The Grafana dashboards of the chart. Each has a module with a function ``build``. `make generate` writes their JSON."""
