"""A report on how a training went and what came of it: one HTML page and its figures.

A version of a store goes in, its history and its recorded data where they are at hand; a folder
with ``index.html`` and PNGs comes out. The page needs no network and no script.

=====================  ==========================================================================
``write``              puts everything together and writes it
``training_section``   the curves; ``search_section`` generations and candidates
``subnet_section``     the form of each support by layer; ``layer_types`` which layers are alike
``answers_section``    confusions and classes; ``mistakes_section`` pictures
``features_section``   test images before and after: ``features`` computes what the classifier
                       sees (with torch), ``embedding`` lays it out (with scikit-learn)
``versions_section``   the versions of the task; ``facts`` how one was made
``blocks``             what a section is made of; ``palette`` its colours
``canvas``             figures as SVG and PNG (with matplotlib)
``page``               the page (with jinja2), from ``templates/``
``report_folder``      the folder, replaced whole
=====================  ==========================================================================

``write_report`` and ``WrittenReport`` can be imported from here; nothing is loaded before they are.
"""

from typing import TYPE_CHECKING

__all__ = ["WrittenReport", "write_report"]

if TYPE_CHECKING:
    from .write import WrittenReport, write_report
else:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(".write", __name__), name)
