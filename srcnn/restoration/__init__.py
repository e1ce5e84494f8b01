"""A network over a photograph of any size: restored, enlarged, scored."""
