"""What a training pod runs: the launcher, the agent that starts the workers, and the supervision of both."""
