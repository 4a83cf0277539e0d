"""Stereo pairs with truth: readers of datasets on disk, rendered scenes, crops."""
