"""The meta-learner's side: the Flower strategy, the curious server, and the record it writes."""
