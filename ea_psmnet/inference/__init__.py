"""Prediction: images in, disparity, pictures and files out."""
