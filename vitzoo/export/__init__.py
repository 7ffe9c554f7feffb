"""ONNX: export and verification."""
from .deploy import deploy_form as deploy_form
from .exporter import export_onnx as export_onnx
from .report import ExportReport as ExportReport
from .verify import ExportError as ExportError
