"""SVG charts for pages that are read offline."""
