"""Gradient alignment: does the observed meta-gradient contain an image's own gradient?"""
