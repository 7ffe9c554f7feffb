"""What `vitzoo.export_onnx` found out about the file it wrote."""
from dataclasses import asdict, dataclass, field

from vitzoo_runtime.terminal import printable

from .quantise import Quantisation
from .verify import Check


@dataclass(frozen=True)
class ExportReport:
    """A checked ONNX file.

    exporter: 'dynamo' or 'torchscript'.
    file_size: in bytes.
    checks: one per batch and image size, see `verify.Check`.
    latency_ms: 'pytorch' and 'onnxruntime', batch 1, median CPU time of one thread, measured in turns; empty if not asked for.
    metadata: what the file carries, see `export_onnx`.
    quantisation: of a file in a smaller precision: what that changed and gained, see `quantise.Quantisation`. Checks, exporter, opset and
        `latency_ms` are then those of the file in float32 that it was made of.
    """
    path: str
    model: str
    task: str
    exporter: str
    opset: int
    nodes: int
    file_size: int
    input_size: tuple[int, int, int]
    outputs: tuple[str, ...]
    checks: list[Check]
    latency_ms: dict[str, float]
    metadata: dict
    warnings: list[str] = field(default_factory=list)
    precision: str = 'fp32'
    quantisation: Quantisation | None = None

    @property
    def max_error(self) -> float:
        """Largest difference to PyTorch over all outputs and checks, as a share of the largest value."""
        return max(error for c in self.checks for error in c.errors.values())

    def to_dict(self) -> dict:
        return {**asdict(self), 'max_error': self.max_error}

    def __rich__(self):
        from rich.markup import escape
        from rich.table import Table
        table = Table(title=escape(f'{printable(self.model)} in ONNX'), show_header=False)
        table.add_row('file', f'{escape(printable(self.path, 1000))}, {self.file_size / 1e6:.1f} MB')
        table.add_row('graph', f'{self.nodes} nodes, opset {self.opset}, {self.exporter} exporter')
        table.add_row('input', f'image, (C, H, W) = {self.input_size}')
        table.add_row('outputs', ', '.join(self.outputs))
        table.add_row('weights', self.metadata.get('weights') or 'not known whether random')
        for c in self.checks:
            table.add_row(f'difference at {c}', f'{max(c.errors.values()):.1e} of the largest value')
        if self.latency_ms:
            pytorch, ort = self.latency_ms['pytorch'], self.latency_ms['onnxruntime']
            table.add_row('latency, 1 thread', f'PyTorch {pytorch:.2f} ms, ONNX Runtime {ort:.2f} ms ({pytorch / ort:.2f}x)')
        if self.quantisation:
            for row in self.quantisation.rows():
                table.add_row(*(escape(printable(text, 1000)) for text in row))
        for warning in self.warnings:
            table.add_row('[yellow]warning', escape(printable(warning, 1000)))
        return table
