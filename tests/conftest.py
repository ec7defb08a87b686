"""Fixtures for every test; brokers are in brokers.py."""

pytest_plugins = ["brokers"]
