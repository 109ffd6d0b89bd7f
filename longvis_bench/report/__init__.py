"""From rows to tables, figures and sentences."""
