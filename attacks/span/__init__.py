"""The span test: is an image in the row space of the first layer's gradient?"""
