"""Picture quality: what is done to the predictions and conditions of a run, one idea a file."""
