"""The processes of a training pod: the launcher, the agent that starts the workers, the workers, and their supervision."""
