"""Hands in Action."""
