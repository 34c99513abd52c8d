"""How Sphinx builds the site: `make docs`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE / "_extensions"), str(ROOT)]

import scipy.stats  # noqa: E402, F401 - scipy looks at the stand-in of torch, see below
import sklearn.gaussian_process  # noqa: E402, F401 - as scipy does

import widelimit  # noqa: E402 - the extensions need the paths above

project = "widelimit"
author = "The widelimit developers"
copyright = author  # noqa: A001 - the name that Sphinx reads
version = release = widelimit.__version__

extensions = [
    "aliases",
    "mathml",
    "signatures",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = [
    "_build",
    "_extensions",
    "sg_execution_times.rst",
    "tutorials/*.ipynb",
    "tutorials/*.py*",
]
templates_path = ["_templates"]
default_role = "py:obj"
add_module_names = False
maximum_signature_line_length = 60
smartquotes_action = "D"
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_update_mathjax = False

autodoc_inherit_docstrings = False
# Stand-ins for libraries that one kernel each is for.
autodoc_mock_imports = ["gpjax", "gpytorch", "paramax", "torch"]
autodoc_typehints_format = "short"
autosummary_generate = True
napoleon_attr_annotations = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# Tutorials: scripts that run when the site is built.
sphinx_gallery_conf = {
    "examples_dirs": str(ROOT / "examples" / "tutorials"),
    "gallery_dirs": "tutorials",
    "filename_pattern": r"plot_",
    "download_all_examples": False,
    "plot_gallery": "True",
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
    "within_subsection_order": "FileNameSortKey",
}

html_theme = "pydata_sphinx_theme"
html_title = "widelimit"
html_static_path = ["_static"]
html_css_files = ["site.css"]
# Pages without others beside them.
html_sidebars = {"getting_started": [], "moving_from_neural_tangents": []}
html_favicon = "_static/icon.svg"
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"
html_context = {"default_mode": "auto"}
html_theme_options = {
    "github_url": "https://github.com/widelimit/widelimit",
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "pygments_light_style": "tango",
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
}
