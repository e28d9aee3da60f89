"""Modules that every process uses: distributed collectives, the state directory, heartbeat, errors, logs, disk space."""
