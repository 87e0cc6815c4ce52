"""Servers that are asked over HTTP: several share the load, and what fails is asked again."""
