"""Reading images and labels from files: what several sources share."""
