"""Task-learners: private shards, few-shot models, meta-learning rules, and the Flower client that hosts them."""
