"""Dagster jobs: thin ops over the plain Python of `resources`."""
