"""Stereo pairs with truth: readers of data sets on disk, rendered scenes, crops."""
