"""Page cursors and page sizes of list methods."""
