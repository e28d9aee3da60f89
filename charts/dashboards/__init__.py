"""The Grafana dashboards of the chart: a module each, whose ``build`` makes it. `make generate` writes their JSON."""
