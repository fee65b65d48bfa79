"""What single studies look into."""
