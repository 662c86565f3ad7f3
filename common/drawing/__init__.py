"""Drawing hands: rasteriser, renderers, overlays, contact sheets, mesh files."""
