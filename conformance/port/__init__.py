"""A worked example: a port of Data2VecVisionForImageClassification, and what holds it against a golden bundle."""
