"""The output directory of a job, and the fence that excludes a second writer."""
