"""Whether a file computes what the trained model does; reads models and files, changes neither."""
