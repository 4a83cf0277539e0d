"""Stereo pairs with ground truth: dataset readers, rendered scenes, augmentation, checks."""
