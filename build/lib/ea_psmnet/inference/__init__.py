"""Prediction: from images to disparity, pictures and files."""
