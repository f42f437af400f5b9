"""Where a separator fails: confusions, scores by level and duration, and the worst items, as a page for a browser."""
