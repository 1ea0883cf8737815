"""From raw corpora to batches: sources, conversations, mixture, tokenised examples."""
