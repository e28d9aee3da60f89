"""The processes of a training pod (launcher, agent, workers), and their supervision: restarts, stalls, stops, telemetry."""
