"""Readers of declared data sets, and the synthetic shapes."""
