"""What is trained: classifiers, Wasserstein critics and generators, each the mathematics of one step over one loop."""
