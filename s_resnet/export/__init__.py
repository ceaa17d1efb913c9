"""Exports: a network in the formats of others, for use without this package."""
