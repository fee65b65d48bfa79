"""Paths, the content-addressed store, files that are whole or not there, downloads, devices, units."""
