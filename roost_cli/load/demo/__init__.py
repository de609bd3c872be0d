"""The demo: users, follows, tweets, likes, retweets and replies that `roost up` loads at its first run."""
