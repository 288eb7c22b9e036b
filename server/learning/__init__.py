"""The meta-learner: asks learners for meta-gradients, adds these up, and takes outer steps."""
