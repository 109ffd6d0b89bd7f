"""One self-contained page of some rows: sentences, linked figures, the whole table and provenance."""
