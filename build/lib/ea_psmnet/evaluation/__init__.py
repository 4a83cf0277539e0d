"""Evaluation of predictors on datasets."""
