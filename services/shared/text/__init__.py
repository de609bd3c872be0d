"""Functions for texts that several services share: one checks that a text has a visible character, another normalizes
line breaks."""
