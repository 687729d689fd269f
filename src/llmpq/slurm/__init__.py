"""Processes on the nodes of a Slurm cluster: what to ask for, one job for all of them, and how they find each other."""
