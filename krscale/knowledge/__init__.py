"""Knowledge Representing: the paper's ideas, one a file, as pure functions on tensors."""
