"""Signs and verifies the page cursors of list methods."""
