"""The examples of a whole batch behind one gradient of a dense layer that ReLU follows."""
