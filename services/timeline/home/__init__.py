"""Builds home timelines, and reads pages of them with the tweets that the reader may see."""
