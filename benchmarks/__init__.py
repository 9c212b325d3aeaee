"""What `make bench` measures: this package beside the same networks without constraint and beside its peers."""
