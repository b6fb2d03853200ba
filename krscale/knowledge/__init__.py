"""Knowledge Representing: the paper's ideas as pure functions on tensors, one idea per file."""
