"""Scripts that reproduce papers and measure; run from the repository root: `python -m experiments.benchmark`."""
import pathlib
import runpy

# What commands set before JAX starts; by its file, because the package warns if it is imported before that is set.
runpy.run_path(str(pathlib.Path(__file__).parent.parent / 'ibpjax' / 'cli' / '__init__.py'))
