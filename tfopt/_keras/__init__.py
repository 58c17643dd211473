"""What knows the insides of both Keras generations."""
