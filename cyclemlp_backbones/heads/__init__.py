"""Heads that the paper used."""
