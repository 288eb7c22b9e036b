"""The span test: is an image in the row space of a first layer's gradient?"""
