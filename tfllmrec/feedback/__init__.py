"""After deployment: experiments, estimates from logs, exploration; numpy, pandas and scipy alone."""
