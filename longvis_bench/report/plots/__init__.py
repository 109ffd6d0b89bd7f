"""Figures: shared style and layout, one module per kind of figure."""
