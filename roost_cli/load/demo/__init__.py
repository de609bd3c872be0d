"""The demo: users, follows, tweets and reactions that `roost up` loads at its first run."""
