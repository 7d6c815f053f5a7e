"""Groups of operations bounded as one: without them every bound is sound, and looser."""
