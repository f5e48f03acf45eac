"""export.json, which the core reads and writes, since whoever serves an export reads it too."""

from glora_deploy.export_record import LIBRARIES, ExportRecord, Format, formats_of

__all__ = ["LIBRARIES", "ExportRecord", "Format", "formats_of"]
