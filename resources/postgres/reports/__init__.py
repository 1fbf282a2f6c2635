"""What the reports say, as questions to the permanent tier: SQL and frozen dataclasses, without Dagster.

Each function takes a connection of the service and is bounded in cost: what a table's statistics or an index tells is
taken from there, and where a figure is an estimate or from a sample, its type says so.
"""
