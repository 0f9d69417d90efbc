"""The built-in demo data: a miniature of the problem, drawn from a stated generative model (docs/demo.md)."""
