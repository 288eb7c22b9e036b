"""The meta-learner: asks learners, adds up their meta-gradients, takes outer steps."""
