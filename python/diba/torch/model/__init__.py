"""A model as diba sees it: settings, which weights are compressed, fused modules taken apart."""
