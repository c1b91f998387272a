"""Proofs and measurements of the streaming engine."""
