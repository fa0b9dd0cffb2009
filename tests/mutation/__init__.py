"""Mutation testing: whether a test notices where the code says something else."""
