"""Scenes mixed from events: synthesised, or from a folder of labelled clips."""
