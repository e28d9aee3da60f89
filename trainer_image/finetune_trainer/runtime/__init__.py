"""What every process needs: distributed collectives, the state directory, heartbeat, errors, logs, disk space."""
