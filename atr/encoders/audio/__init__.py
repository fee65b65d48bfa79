"""Audio networks and their frontends."""
