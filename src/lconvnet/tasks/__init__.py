"""The tasks: classifiers, Wasserstein critics and generators. Each defines one step of the common training loop."""
