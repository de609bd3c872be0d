"""Rules of text that several services share: visible characters and line breaks."""
