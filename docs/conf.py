"""Sphinx: guides and results in Markdown, the reference from docstrings."""
import re

project, author = 'ibpjax', 'The ibpjax authors'
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
html_theme = 'furo'
myst_heading_anchors = 3
default_role = 'code'                       # `x` in a docstring is code
autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
autodoc_class_signature = 'separated'
napoleon_use_rtype = False
napoleon_custom_sections = ['Source', 'Metrics', 'Premise']
suppress_warnings = ['misc.highlighting_failure']


def setup(app):
  app.connect('autodoc-process-docstring', plain)


def plain(app, what, name, obj, options, lines):
  """Bars and stars of formulas are no markup, outside of `code`."""
  escaped = [re.sub(r'([|*])', r'\\\1', part) if i % 2 == 0 else part
             for i, part in enumerate('\n'.join(lines).split('`'))]
  lines[:] = '`'.join(escaped).split('\n')
