"""Memory: predicted against measured, and which cards a model fits on."""
