"""Causal language models that answer: one cached pass, how tokens are chosen, and the loop around both."""
