"""The output directory of a job, and the fence that keeps a second writer out."""
