"""The pages under docs/ and README.md against the code, the results and each other."""
