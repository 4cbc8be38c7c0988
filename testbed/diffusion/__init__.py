"""The mathematics: noise levels, predictions, parameterizations, the denoiser, equal objectives."""
